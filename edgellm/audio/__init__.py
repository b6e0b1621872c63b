"""Sound as 16 kHz float32 samples, whatever file it comes from: ``open_audio`` for a stream, ``load_audio`` for all."""

from edgellm.audio.decoders import SAMPLE_RATE, AudioInfo
from edgellm.audio.reader import AudioReader, AudioSource, Channel, load_audio, open_audio

__all__ = ["SAMPLE_RATE", "AudioInfo", "AudioReader", "AudioSource", "Channel", "load_audio", "open_audio"]
