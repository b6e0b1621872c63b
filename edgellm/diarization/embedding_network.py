"""The network of CAM++ (3D-Speaker): who speaks, as 192 numbers.

A small two-dimensional convolutional front end, densely connected time-delay layers each with a context-aware mask, and
pooling of mean and deviation over time (H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: a fast and efficient
network for speaker verification using context-aware masking", Interspeech 2023).

The mask's context is the mean over the window plus the mean over blocks of 100 steps. A window of up to 200 feature
frames is one such block, so that the context is twice the mean; longer windows are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.checkpoint import Tensors
from edgellm.diarization.dense import GROWTH, DenseLayer, Masked, rounded
from edgellm.diarization.onnx_writer import OnnxWriter

FEATURES = 80
EMBEDDING = 192
MOST_FRAMES = 200
"""Two seconds of features: after the stride of two, one block of the context-aware mask."""
EPSILON = 1e-5
CHANNELS = 128
"""Behind the front end."""
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of each dense block."""


def batch_normalization(tensors: Tensors, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A batch normalization as scale and shift of each channel."""
    mean, variance = (tensors[f"{name}.running_{part}"].astype(np.float64) for part in ("mean", "var"))
    scale = tensors[f"{name}.weight"] if f"{name}.weight" in tensors else np.ones_like(mean)
    bias = tensors[f"{name}.bias"] if f"{name}.bias" in tensors else np.zeros_like(mean)
    factor = scale / np.sqrt(variance + EPSILON)
    return factor, bias - mean * factor


def front_end_onnx(tensors: Tensors) -> bytes:
    """The first part: features (batch, frames, 80), less their mean, to (batch, steps, 128), a step for two frames."""
    net = OnnxWriter()
    x = net.apply("Transpose", "features", perm=[0, 2, 1])
    x = net.apply("Unsqueeze", x, net.weight(np.array([1], np.int64)))
    x = _front_end(net, x, tensors)
    x = _folded_convolution(
        net, x, tensors, "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm", strides=[2], pads=[2, 2]
    )
    x = net.apply("Transpose", net.apply("Relu", x), perm=[0, 2, 1])
    return net.finish("CAM++ front end", {"features": ["batch", "frames", FEATURES]}, x, ["batch", "steps", CHANNELS])


def dense_layers(tensors: Tensors) -> list[DenseLayer]:
    """The second part: (steps, 128) to (steps, 512)."""
    layers, channels = [], CHANNELS
    for block, (count, dilation) in enumerate(BLOCKS, start=1):
        for number in range(1, count + 1):
            layers.append(_dense_layer(tensors, f"xvector.block{block}.tdnnd{number}", dilation))
            _check(layers[-1], channels, block, number)
            channels += GROWTH
        name = f"xvector.transit{block}"
        weights, scales = rounded(tensors[f"{name}.linear.weight"][:, :, 0])
        factors, shifts = (_single(part) for part in batch_normalization(tensors, f"{name}.nonlinear.batchnorm"))
        layers.append(DenseLayer(factors, shifts, weights, scales, np.zeros_like(scales), rectify=False))
        _check(layers[-1], channels, block, 0)
        channels = len(weights)
    return layers


def _check(layer: DenseLayer, channels: int, block: int, number: int) -> None:
    if layer.weights.shape[1] != channels or layer.factors.shape != (channels,):
        raise ValueError(f"layer {number} of block {block} takes {layer.weights.shape[1]} channels, not {channels}")


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)


def _dense_layer(tensors: Tensors, name: str, dilation: int) -> DenseLayer:
    """32 channels, masked by what the window as a whole sounds like."""
    factors, shifts = (_single(part) for part in batch_normalization(tensors, f"{name}.nonlinear1.batchnorm"))
    factor, bias = batch_normalization(tensors, f"{name}.nonlinear2.batchnorm")
    weights, scales = rounded(tensors[f"{name}.linear1.weight"][:, :, 0] * factor[:, None])
    local, local_scales = rounded(tensors[f"{name}.cam_layer.linear_local.weight"])
    parts = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
    narrow, narrow_bias, wide, wide_bias = (_single(tensors[f"{name}.cam_layer.{part}"]) for part in parts)
    # The context is the mean over the window plus the mean over its one block.
    masked = Masked(dilation, local, local_scales, 2 * narrow[:, :, 0], narrow_bias, wide[:, :, 0], wide_bias)
    return DenseLayer(factors, shifts, weights, scales, _single(bias), rectify=True, masked=masked)


@dataclass(frozen=True)
class Pooling:
    """The last part: (steps, 512) to an embedding (192,), not normalized.

    There is no activation behind the last normalization: the authors' configuration has none, and one there doubles
    the error rate of verification.

    Attributes:
        factors, shifts: of the channels, which are rectified then.
        weights, bias: of the embedding, from mean and unbiased deviation over time.
    """

    factors: NDArray[np.float32]
    shifts: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.maximum(x * self.factors + self.shifts, 0)
        pooled = np.concatenate([x.mean(axis=0), x.std(axis=0, ddof=1)])
        return np.asarray(self.weights @ pooled + self.bias, np.float32)


def pooling(tensors: Tensors) -> Pooling:
    """The last part of a checkpoint."""
    factors, shifts = batch_normalization(tensors, "xvector.out_nonlinear.batchnorm")
    factor, bias = batch_normalization(tensors, "xvector.dense.nonlinear.batchnorm")
    weights = tensors["xvector.dense.linear.weight"][:, :, 0] * factor[:, None]
    if weights.shape != (EMBEDDING, 2 * len(factors)):
        raise ValueError(f"xvector.dense.linear.weight of shape {weights.shape}")
    return Pooling(*(_single(part) for part in (factors, shifts, weights, bias)))


@dataclass(frozen=True)
class EmbeddingNetwork:
    """The whole; may be called from several threads at once.

    Attributes:
        front_end: runs `front_end_onnx`.
        layers: runs `dense_layers`.
        pooling: what is left.
    """

    front_end: Callable[..., NDArray[np.float32]]
    layers: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    pooling: Pooling

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (batch, frames, 80), their mean taken off, to embeddings (batch, 192), not normalized."""
        return np.stack([self.pooling(self.layers(x)) for x in self.front_end(features=features)])


def _front_end(net: OnnxWriter, x: str, tensors: Tensors) -> str:
    """(batch, 1, 80, frames) to (batch, 320, frames)."""
    x = net.apply("Relu", _folded_convolution(net, x, tensors, "head.conv1", "head.bn1", pads=[1] * 4))
    for layer in ("head.layer1", "head.layer2"):
        for number, stride in ((0, 2), (1, 1)):
            name = f"{layer}.{number}"
            strides = [stride, 1]
            y = _folded_convolution(net, x, tensors, f"{name}.conv1", f"{name}.bn1", strides=strides, pads=[1] * 4)
            y = _folded_convolution(net, net.apply("Relu", y), tensors, f"{name}.conv2", f"{name}.bn2", pads=[1] * 4)
            if stride != 1:
                x = _folded_convolution(net, x, tensors, f"{name}.shortcut.0", f"{name}.shortcut.1", strides=strides)
            x = net.apply("Relu", net.apply("Add", y, x))
    x = _folded_convolution(net, x, tensors, "head.conv2", "head.bn2", strides=[2, 1], pads=[1] * 4)
    return net.apply("Reshape", net.apply("Relu", x), net.weight(np.array([0, 4 * FEATURES, -1], np.int64)))


def _folded_convolution(
    net: OnnxWriter, x: str, tensors: Tensors, convolution: str, normalization: str, **attributes: Any
) -> str:
    factor, shift = batch_normalization(tensors, normalization)
    weight = tensors[f"{convolution}.weight"]
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return net.apply("Conv", x, net.weight(weight), net.weight(shift), **attributes)
