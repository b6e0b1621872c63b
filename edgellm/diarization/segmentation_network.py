"""The network of pyannote segmentation-3.0 (PyanNet): ONNX graphs, and kernels for what these do slowly.

Sinc filters, two convolutions, four bidirectional LSTM layers and a classifier of the seven sets of at most two of
three speakers (H. Bredin, "pyannote.audio 2.1 speaker diarization pipeline", Interspeech 2023; A. Plaquet and
H. Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023; M. Ravanelli and
Y. Bengio, "Speaker recognition from raw waveform with SincNet", SLT 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.checkpoint import Tensors
from edgellm.diarization.kernel_calls import call_kernel, kernel_function
from edgellm.diarization.lstm import FULL, GATES, ZERO, Direction, LSTMKernel, by_units, quantized_direction
from edgellm.diarization.onnx_writer import OnnxWriter
from edgellm.errors import CorruptFileError
from edgellm.kernels.sound_records import FOLD

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 160_000
"""The network normalizes over its input, so that this is always ten seconds."""
FRAME_SAMPLES = 270
"""From one frame of its output to the next."""
FIRST_FRAME_CENTRE = 495.5
"""Sample in the middle of what the first frame sees; a frame sees 991."""
FRAMES = 589
CLASSES = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
"""Which of the three local speakers speak, for each class."""
EPSILON = 1e-5
LEAK = 0.01
HIDDEN = 128
LSTM_LAYERS = 4
FILTERS = 80
FILTER_SAMPLES = 251
_SINC_STRIDE = 10
_POOL = 3
STEP_SAMPLES = _SINC_STRIDE * _POOL
"""From one column of the filters' responses to the next; divides `FRAME_SAMPLES`."""
WINDOW_STEPS = ((WINDOW_SAMPLES - FILTER_SAMPLES) // _SINC_STRIDE + 1) // _POOL
_LOWEST_HZ = _NARROWEST_HZ = 50.0
_DIRECTIONS = ("", "_reverse")


@dataclass(frozen=True)
class WindowNormalization:
    """The network's normalization of a window's samples, applied to the responses of its filters.

    Attributes:
        weight, bias: of the normalization.
        gains: each filter's response to a constant 1, (80,).
    """

    weight: float
    bias: float
    gains: NDArray[np.float32]

    def scale_and_shift(self, samples: NDArray[np.float32]) -> tuple[np.float32, NDArray[np.float32]]:
        """The factor of all responses in a window and what to add to each, (80,)."""
        mean, variance = float(samples.mean(dtype=np.float64)), float(samples.var(dtype=np.float64))
        scale = self.weight / (variance + EPSILON) ** 0.5
        return np.float32(scale), (self.gains * np.float32(self.bias - scale * mean))


def sinc_filters(tensors: Tensors) -> NDArray[np.float32]:
    """The 80 band-pass filters, (80, 251): 40 with the phase of a cosine, then the same with that of a sine."""
    low = _LOWEST_HZ + np.abs(tensors["sincnet.conv1d.0.filterbank.low_hz_"].astype(np.float64))
    width = np.abs(tensors["sincnet.conv1d.0.filterbank.band_hz_"].astype(np.float64))
    high = np.clip(low + _NARROWEST_HZ + width, _LOWEST_HZ, SAMPLE_RATE / 2)
    band = high - low
    window = tensors["sincnet.conv1d.0.filterbank.window_"].astype(np.float64)
    times = tensors["sincnet.conv1d.0.filterbank.n_"].astype(np.float64)  # 2 pi t for t < 0, in seconds
    half = times / 2
    even = (np.sin(high @ times) - np.sin(low @ times)) / half * window
    odd = (np.cos(low @ times) - np.cos(high @ times)) / half * window
    middle = 2 * band
    cosines = np.concatenate([even, middle, even[:, ::-1]], axis=1) / (2 * band)
    sines = np.concatenate([odd, np.zeros_like(middle), -odd[:, ::-1]], axis=1) / (2 * band)
    return np.concatenate([cosines, sines]).astype(np.float32)


def filters_onnx(tensors: Tensors) -> bytes:
    """The first part, which windows share: samples (1, 1, n) to the filters' responses (1, 160, m).

    Each column stands for three steps of the filters, 30 samples: the largest of each response, then the largest of
    each negated one. The network normalizes a window before it filters it, which changes a response r into a * r + c,
    and then takes the largest of the absolute values: that is the larger of a * largest(r) + c and a * largest(-r) - c.
    So the filters, a quarter of the work, run once over the sound and not once for each window.
    """
    net = OnnxWriter()
    x = net.apply("Conv", "samples", net.weight(sinc_filters(tensors)[:, None, :]), strides=[_SINC_STRIDE])
    largest, smallest = (
        net.apply("MaxPool", signed, kernel_shape=[_POOL], strides=[_POOL]) for signed in (x, net.apply("Neg", x))
    )
    x = net.apply("Concat", largest, smallest, axis=1)
    return net.finish("pyannote-segmentation-3.0-filters", {"samples": [1, 1, "samples"]}, x, [1, 2 * FILTERS, "steps"])


def window_normalization(tensors: Tensors) -> WindowNormalization:
    """What `filters_onnx` leaves to be done with each window."""
    weight = float(tensors["sincnet.wav_norm1d.weight"][0])
    if weight <= 0:
        raise CorruptFileError(f"the segmentation network scales sound by {weight}, which is not above 0")
    gains = sinc_filters(tensors).astype(np.float64).sum(axis=1)
    return WindowNormalization(weight, float(tensors["sincnet.wav_norm1d.bias"][0]), gains.astype(np.float32))


def fold(responses: NDArray[np.float32], scale: np.float32, shifts: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network has behind its first pooling, (80, steps): the reference of the kernel.

    Args:
        responses: of `filters_onnx`, (160, steps).
        scale, shifts: of `WindowNormalization.scale_and_shift`.
    """
    largest, smallest = responses[:FILTERS], responses[FILTERS:]
    folded = np.maximum(scale * largest + shifts[:, None], scale * smallest - shifts[:, None])
    return np.asarray(folded, np.float32)


class Fold:
    """The kernel of `edgellm.kernels.fold`; may be called from several threads at once.

    Args:
        address: of the kernel.
        keep_alive: what must live as long as the address is valid.
    """

    def __init__(self, address: int, keep_alive: object) -> None:
        self._function, self._keep_alive = kernel_function(address), keep_alive

    def __call__(
        self,
        responses: NDArray[np.float32],
        scale: np.float32,
        shifts: NDArray[np.float32],
        output: NDArray[np.float32],
    ) -> None:
        """As `fold`, into ``output``; rows of both may be apart, the values of a row are not."""
        rows, width = output.shape
        if responses.shape != (2 * rows, width) or shifts.shape != (rows,):
            raise ValueError(f"responses {responses.shape} and shifts {shifts.shape} for {output.shape}")
        if any(array.strides[-1] != 4 or array.dtype != np.float32 for array in (responses, shifts, output)):
            raise ValueError("values of a row must be float32 side by side")
        arrays: dict[str, NDArray[Any]] = {
            "rows": np.array([rows], np.int64),
            "a": responses,
            "b": responses[rows:],
            "scale": np.array([scale], np.float32),
            "shifts": shifts,
            "output": output,
        }
        strides = {"stride": responses.strides[0], "output_stride": output.strides[0]}
        call_kernel(self._function, FOLD, arrays, width=width, **strides)


def convolutions_onnx(tensors: Tensors) -> bytes:
    """The second part: folded responses (batch, 80, 5325) to (589, batch, 1024), what the gates of the first LSTM layer
    start with: forward ones before backward ones, each in the order of the kernel.
    """
    net = OnnxWriter()
    x = _normalize(net, "folded", tensors, 0)
    for number in (1, 2):
        weight, bias = (tensors[f"sincnet.conv1d.{number}.{part}"] for part in ("weight", "bias"))
        x = net.apply("Conv", x, net.weight(weight), net.weight(bias))
        x = _normalize(net, net.apply("MaxPool", x, kernel_shape=[_POOL], strides=[_POOL]), tensors, number)
    x = net.apply("Transpose", x, perm=[2, 0, 1])
    weight = np.concatenate([by_units(_weights(tensors, "weight_ih", 0, suffix).T) for suffix in _DIRECTIONS], axis=1)
    start = np.concatenate([_direction(tensors, 0, suffix).start() for suffix in _DIRECTIONS])
    x = net.apply("Add", net.apply("MatMul", x, net.weight(weight)), net.weight(start))
    inputs: dict[str, list[int | str]] = {"folded": ["batch", FILTERS, WINDOW_STEPS]}
    return net.finish("pyannote-segmentation-3.0-convolutions", inputs, x, [FRAMES, "batch", 2 * GATES * HIDDEN])


def lstm_directions(tensors: Tensors) -> list[list[Direction]]:
    """The third part: both directions of each layer. The input of the first layer comes multiplied."""
    return [[_direction(tensors, layer, suffix) for suffix in _DIRECTIONS] for layer in range(LSTM_LAYERS)]


def _direction(tensors: Tensors, layer: int, suffix: str) -> Direction:
    of_input, of_state = (_weights(tensors, kind, layer, suffix) for kind in ("weight_ih", "weight_hh"))
    bias = sum(tensors[f"lstm.{kind}_l{layer}{suffix}"].astype(np.float64) for kind in ("bias_ih", "bias_hh"))
    return quantized_direction(
        of_input[:, :0] if layer == 0 else of_input, of_state, np.asarray(bias), backward=bool(suffix)
    )


def _weights(tensors: Tensors, kind: str, layer: int, suffix: str) -> NDArray[np.float32]:
    values = np.asarray(tensors[f"lstm.{kind}_l{layer}{suffix}"], np.float32)
    if len(values) != GATES * HIDDEN or not np.isfinite(values).all():
        raise ValueError(f"lstm.{kind}_l{layer}{suffix} of shape {values.shape}")
    return values


def classifier_onnx(tensors: Tensors) -> bytes:
    """The last part: codes of the LSTM's states (589, batch, 256), as float32, to the log-probabilities of the
    classes, (batch, 589, 7)."""
    net = OnnxWriter()
    x = net.apply("Sub", "codes", net.weight(np.array([ZERO], np.float32)))
    x = net.apply("Mul", x, net.weight(np.array([1 / FULL], np.float32)))
    for number in range(2):
        x = net.apply("LeakyRelu", _linear(net, x, tensors, f"linear.{number}"), alpha=LEAK)
    x = net.apply("LogSoftmax", _linear(net, x, tensors, "classifier"), axis=-1)
    x = net.apply("Transpose", x, perm=[1, 0, 2])
    inputs: dict[str, list[int | str]] = {"codes": [FRAMES, "batch", 2 * HIDDEN]}
    return net.finish("pyannote-segmentation-3.0-classifier", inputs, x, ["batch", FRAMES, len(CLASSES)])


def _normalize(net: OnnxWriter, x: str, tensors: Tensors, number: int) -> str:
    scale, bias = (net.weight(tensors[f"sincnet.norm1d.{number}.{part}"]) for part in ("weight", "bias"))
    return net.apply("LeakyRelu", net.apply("InstanceNormalization", x, scale, bias, epsilon=EPSILON), alpha=LEAK)


def _linear(net: OnnxWriter, x: str, tensors: Tensors, name: str) -> str:
    product = net.apply("MatMul", x, net.weight(tensors[f"{name}.weight"].T))
    return net.apply("Add", product, net.weight(tensors[f"{name}.bias"]))


@dataclass(frozen=True)
class SegmentationNetwork:
    """The network behind its filters; may be called from several threads at once.

    The LSTM layers, three quarters of the work, run on codes of 8 bits.

    Attributes:
        convolutions: runs `convolutions_onnx`.
        layers: both directions of each LSTM layer.
        classifier: runs `classifier_onnx`.
    """

    convolutions: Callable[..., NDArray[np.float32]]
    layers: Sequence[Sequence[LSTMKernel]]
    classifier: Callable[..., NDArray[np.float32]]

    def __call__(self, folded: NDArray[np.float32]) -> NDArray[np.float32]:
        """Folded responses (batch, 80, 5325) to the log-probabilities of the classes, (batch, 589, 7)."""
        entering = self.convolutions(folded=folded)
        steps, batch, width = entering.shape
        states = np.empty((steps, batch, 0), np.uint8)
        for number, directions in enumerate(self.layers):
            following = np.empty((steps, batch, 2 * HIDDEN), np.uint8)
            for half, run in enumerate(directions):
                output = following[:, :, half * HIDDEN :][:, :, :HIDDEN]
                products = entering[:, :, half * (width // 2) :][:, :, : width // 2]
                run(states, output, products if number == 0 else None)
            states = following
        return self.classifier(codes=states.astype(np.float32))
