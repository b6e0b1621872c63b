"""The two networks of diarization in plain NumPy, layer by layer, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.checkpoint import Tensors
from edgellm.diarization.embedding_network import BLOCKS, batch_normalization
from edgellm.diarization.segmentation_network import sinc_filters

Array = NDArray[Any]


def _windows(x: Array, size: int, stride: int, dilation: int = 1) -> Array:
    """(channels, time) to (places, channels, size)."""
    reach = (size - 1) * dilation + 1
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=1)[:, ::stride, ::dilation]
    return view.transpose(1, 0, 2)


def convolve(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, pad: int = 0, dilation: int = 1
) -> Array:
    """A one-dimensional convolution, (channels, time)."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad)))
    result = np.einsum("tci,oci->ot", _windows(padded, weight.shape[2], stride, dilation), weight.astype(np.float64))
    return result if bias is None else result + bias[:, None]


def convolve_2d(x: Array, weight: Array, stride: int, pad: int) -> Array:
    """A convolution over (channels, height, width); the stride is along the height."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    size = weight.shape[2]
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride]
    return np.asarray(np.einsum("chwij,ocij->ohw", view, weight.astype(np.float64), optimize=True))


def _instance(x: Array, weight: Array, bias: Array) -> Array:
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight[:, None] + bias[:, None]


def _leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.01 * x)


def _pool(x: Array) -> Array:
    whole = x.shape[1] // 3 * 3
    return x[:, :whole].reshape(len(x), -1, 3).max(axis=2)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm_layer(x: Array, of_input: Array, of_state: Array, bias: Array) -> Array:
    """One direction of one layer, (time, width) to (time, units)."""
    units = of_state.shape[1]
    hidden, cell, outputs = np.zeros(units), np.zeros(units), []
    for row in x @ of_input.T.astype(np.float64) + bias:
        enter, forget, new, leave = np.split(row + hidden @ of_state.T.astype(np.float64), 4)
        cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
        hidden = _sigmoid(leave) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs)


def _lstm(x: Array, tensors: Tensors, suffix: str) -> Array:
    bias = tensors[f"lstm.bias_ih_{suffix}"] + tensors[f"lstm.bias_hh_{suffix}"]
    return lstm_layer(x, tensors[f"lstm.weight_ih_{suffix}"], tensors[f"lstm.weight_hh_{suffix}"], bias)


def segment_reference(tensors: Tensors, samples: Array) -> Array:
    """160000 samples to log-probabilities (589, 7), in the order in which the network's authors have the layers."""
    norm = [tensors[f"sincnet.wav_norm1d.{part}"] for part in ("weight", "bias")]
    x = _instance(samples[None].astype(np.float64), *norm)
    x = np.abs(convolve(x, sinc_filters(tensors)[:, None], stride=10))
    for number in range(3):
        if number:
            weight, bias = (tensors[f"sincnet.conv1d.{number}.{part}"] for part in ("weight", "bias"))
            x = convolve(x, weight, bias)
        scale, shift = (tensors[f"sincnet.norm1d.{number}.{part}"] for part in ("weight", "bias"))
        x = _leaky(_instance(_pool(x), scale, shift))
    x = x.T
    for layer in range(4):
        backward = _lstm(x[::-1], tensors, f"l{layer}_reverse")[::-1]
        x = np.concatenate([_lstm(x, tensors, f"l{layer}"), backward], axis=1)
    for number in range(2):
        x = _leaky(x @ tensors[f"linear.{number}.weight"].T + tensors[f"linear.{number}.bias"])
    x = x @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def _normalized(x: Array, tensors: Tensors, name: str) -> Array:
    factor, shift = batch_normalization(tensors, name)
    shape = (-1, *[1] * (x.ndim - 1))
    return x * factor.reshape(shape) + shift.reshape(shape)


def embed_reference(tensors: Tensors, features: Array) -> Array:
    """Features (frames, 80) to an embedding (192,), by layers that are not folded into one another."""

    def relu(x: Array) -> Array:
        return np.maximum(x, 0)

    def block(x: Array, name: str, stride: int) -> Array:
        y = relu(_normalized(convolve_2d(x, tensors[f"{name}.conv1.weight"], stride, 1), tensors, f"{name}.bn1"))
        y = _normalized(convolve_2d(y, tensors[f"{name}.conv2.weight"], 1, 1), tensors, f"{name}.bn2")
        if stride != 1:
            x = convolve_2d(x, tensors[f"{name}.shortcut.0.weight"], stride, 0)
            x = _normalized(x, tensors, f"{name}.shortcut.1")
        return relu(y + x)

    x = features.T[None].astype(np.float64)
    x = relu(_normalized(convolve_2d(x, tensors["head.conv1.weight"], 1, 1), tensors, "head.bn1"))
    for layer in ("head.layer1", "head.layer2"):
        x = block(block(x, f"{layer}.0", 2), f"{layer}.1", 1)
    x = relu(_normalized(convolve_2d(x, tensors["head.conv2.weight"], 2, 1), tensors, "head.bn2"))
    x = x.reshape(320, -1)
    x = convolve(x, tensors["xvector.tdnn.linear.weight"], stride=2, pad=2)
    x = relu(_normalized(x, tensors, "xvector.tdnn.nonlinear.batchnorm"))
    for number, (layers, dilation) in enumerate(BLOCKS, start=1):
        for layer in range(1, layers + 1):
            name = f"xvector.block{number}.tdnnd{layer}"
            y = relu(_normalized(x, tensors, f"{name}.nonlinear1.batchnorm"))
            y = relu(
                _normalized(convolve(y, tensors[f"{name}.linear1.weight"]), tensors, f"{name}.nonlinear2.batchnorm")
            )
            cam = f"{name}.cam_layer"
            context = 2 * y.mean(axis=1, keepdims=True)  # over the window, and over its one block of 100 steps
            mask = relu(convolve(context, tensors[f"{cam}.linear1.weight"], tensors[f"{cam}.linear1.bias"]))
            mask = _sigmoid(convolve(mask, tensors[f"{cam}.linear2.weight"], tensors[f"{cam}.linear2.bias"]))
            local = convolve(y, tensors[f"{cam}.linear_local.weight"], pad=dilation, dilation=dilation)
            x = np.concatenate([x, local * mask])
        x = relu(_normalized(x, tensors, f"xvector.transit{number}.nonlinear.batchnorm"))
        x = convolve(x, tensors[f"xvector.transit{number}.linear.weight"])
    x = relu(_normalized(x, tensors, "xvector.out_nonlinear.batchnorm"))
    pooled = np.concatenate([x.mean(axis=1), x.std(axis=1, ddof=1) if x.shape[1] > 1 else np.full(len(x), 1e-2)])
    return _normalized(
        tensors["xvector.dense.linear.weight"][:, :, 0] @ pooled, tensors, "xvector.dense.nonlinear.batchnorm"
    )
