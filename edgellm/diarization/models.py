"""The two networks on this machine: fetched once, converted once to ONNX files of ours, run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.checkpoint import Tensors, read_checkpoint
from edgellm.diarization.dense import DenseKernel
from edgellm.diarization.embedding_network import MOST_FRAMES, EmbeddingNetwork, dense_layers, front_end_onnx, pooling
from edgellm.diarization.features import Fbank
from edgellm.diarization.lstm import LSTMKernel
from edgellm.diarization.segmentation_network import (
    Fold,
    SegmentationNetwork,
    WindowNormalization,
    classifier_onnx,
    convolutions_onnx,
    filters_onnx,
    lstm_directions,
    window_normalization,
)
from edgellm.errors import CorruptFileError, EdgeLLMError
from edgellm.folders import kernels_folder
from edgellm.hub import resolve
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.target import current_target

log = logging.getLogger(__name__)

ALIAS = "diarization"
FBANK_KERNEL, FOLD_KERNEL, LSTM_KERNEL, DENSE_KERNEL = KERNELS = ("fbank.kaldi", "fold.rows", "lstm.int8", "dense.int8")
SEGMENTATION_FILE = "pyannote-segmentation-3.0.pt"
EMBEDDING_FILE = "campplus-zh-en-common-advanced.pt"
_VERSION = 3
"""Of the conversion: files of another one are not used."""

Progress = Callable[[str, int, int], None]


class Network:
    """An ONNX model of float32 inputs and one output; may be called from several threads at once."""

    def __init__(self, model: bytes, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # One thread for each call: several calls at a time use the cores better than one call with several threads.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds, none of them public
            raise EdgeLLMError(f"ONNX Runtime cannot load {name}: {error}", "report this") from error

    def __call__(self, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for inputs by name."""
        result: Any = self._session.run(None, inputs)[0]
        return np.asarray(result, np.float32)


@dataclass(frozen=True)
class Models:
    """What diarization runs.

    Attributes:
        filters: of `filters_onnx`.
        normalization: what is left to be done with their responses.
        fold: puts both together.
        segmentation: what follows.
        embedding: who speaks.
        fbank: the features it is fed with.
    """

    filters: Network
    normalization: WindowNormalization
    fold: Fold
    segmentation: SegmentationNetwork
    embedding: EmbeddingNetwork
    fbank: Fbank


def load_models(progress: Progress | None = None, offline: bool = False) -> Models:
    """The networks, fetched and converted if they are not here yet.

    Raises:
        DownloadError: they could not be fetched.
        CorruptFileError: the files are damaged.
        EdgeLLMError: a package is missing.
    """
    segmentation = Path(resolve(ALIAS, progress, offline))
    return models_from(segmentation, segmentation.with_name(EMBEDDING_FILE), progress)


def models_from(segmentation: Path, embedding: Path, progress: Progress | None = None) -> Models:
    """The networks from the authors' two checkpoints; what they are converted to is kept beside them."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EdgeLLMError(
            "diarization needs the package onnxruntime", "pip install 'edgellm[speech,diarization]'"
        ) from error
    tensors = read_checkpoint(segmentation)
    library = KernelLibrary(current_target(), kernels_folder(), progress)
    addresses = library.load(KERNELS)
    return Models(
        Network(_converted(segmentation, "filters", lambda: filters_onnx(tensors)), "the filters"),
        _described(segmentation, window_normalization, tensors),
        Fold(addresses[FOLD_KERNEL], library),
        _segmentation_network(segmentation, tensors, addresses[LSTM_KERNEL], library),
        _embedding_network(embedding, addresses[DENSE_KERNEL], library),
        Fbank(addresses[FBANK_KERNEL], library),
    )


def _segmentation_network(
    checkpoint: Path, tensors: Tensors, address: int, library: KernelLibrary
) -> SegmentationNetwork:
    directions = _described(checkpoint, lstm_directions, tensors)
    return SegmentationNetwork(
        Network(_converted(checkpoint, "convolutions", lambda: convolutions_onnx(tensors)), "the convolutions"),
        [[LSTMKernel(address, library, direction) for direction in layer] for layer in directions],
        Network(_converted(checkpoint, "classifier", lambda: classifier_onnx(tensors)), "the classifier"),
    )


def _embedding_network(checkpoint: Path, address: int, library: KernelLibrary) -> EmbeddingNetwork:
    tensors = read_checkpoint(checkpoint)
    return EmbeddingNetwork(
        Network(_converted(checkpoint, "front-end", lambda: front_end_onnx(tensors)), "the front end"),
        DenseKernel(address, library, _described(checkpoint, dense_layers, tensors), (MOST_FRAMES + 1) // 2),
        _described(checkpoint, pooling, tensors),
    )


def _converted(checkpoint: Path, part: str, convert: Callable[[], bytes]) -> bytes:
    """The ONNX file beside a checkpoint, which is written if it is not there."""
    path = checkpoint.with_name(f"{checkpoint.stem}.{part}-{_VERSION}.onnx")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    model: bytes = _described(checkpoint, lambda _: convert(), {})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.warning("%s cannot be kept (%s), so that each start converts it", path, error.strerror)
    finally:
        temporary.unlink(missing_ok=True)
    return model


def _described(checkpoint: Path, convert: Callable[[Tensors], Any], tensors: Tensors) -> Any:
    """Errors of a conversion in one line: a tensor that is missing or of another shape."""
    try:
        return convert(tensors)
    except ImportError as error:
        raise EdgeLLMError(
            f"converting the diarization models needs the package {error.name}", "pip install 'edgellm[diarization]'"
        ) from error
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptFileError(
            f"{checkpoint.name} does not hold the network it should ({type(error).__name__}: {error})",
            "fetch it again: edgellm pull diarization --force",
        ) from error
