"""Who spoke when: `Diarizer`, the error rate, RTTM."""

from edgellm.diarization.pipeline import DiarizationSettings, Diarizer
from edgellm.diarization.results import Diarization, Turn
from edgellm.diarization.rttm import format_rttm, read_rttm
from edgellm.diarization.scoring import ErrorRate, diarization_error_rate

__all__ = [
    "Diarization",
    "DiarizationSettings",
    "Diarizer",
    "ErrorRate",
    "Turn",
    "diarization_error_rate",
    "format_rttm",
    "read_rttm",
]
