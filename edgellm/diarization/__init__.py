"""Who spoke when: `Diarizer`, for sounds that still come `LiveDiarizer`; known voices, the error rate, RTTM."""

from edgellm.diarization.joining import assign_speakers, merge_channels
from edgellm.diarization.live import LiveDiarizer, LiveSpeakers
from edgellm.diarization.pipeline import DiarizationSettings, Diarizer
from edgellm.diarization.results import Diarization, Turn
from edgellm.diarization.rttm import format_rttm, read_rttm
from edgellm.diarization.scoring import ErrorRate, diarization_error_rate
from edgellm.diarization.speakers import SpeakerCount
from edgellm.diarization.voices import Voice, Voices

__all__ = [
    "Diarization",
    "DiarizationSettings",
    "Diarizer",
    "ErrorRate",
    "LiveDiarizer",
    "LiveSpeakers",
    "SpeakerCount",
    "Turn",
    "Voice",
    "Voices",
    "assign_speakers",
    "diarization_error_rate",
    "format_rttm",
    "merge_channels",
    "read_rttm",
]
