"""The network of CAM++ (3D-Speaker) as an ONNX graph: who speaks, as 192 numbers.

A small two-dimensional convolutional front end, densely connected time-delay layers each with a context-aware mask, and
pooling of mean and deviation over time (H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: a fast and efficient
network for speaker verification using context-aware masking", Interspeech 2023).

The mask's context is the mean over the window plus the mean over blocks of 100 steps. A window of up to 200 feature
frames is one such block, so that the context is twice the mean; longer windows are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.checkpoint import Tensors
from edgellm.diarization.onnx_writer import OnnxWriter

FEATURES = 80
EMBEDDING = 192
MOST_FRAMES = 200
"""Two seconds of features: after the stride of two, one block of the context-aware mask."""
EPSILON = 1e-5
_SMALLEST_FACTOR = 1e-12
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of each dense block."""


def batch_normalization(tensors: Tensors, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A batch normalization as scale and shift of each channel."""
    mean, variance = (tensors[f"{name}.running_{part}"].astype(np.float64) for part in ("mean", "var"))
    scale = tensors[f"{name}.weight"] if f"{name}.weight" in tensors else np.ones_like(mean)
    bias = tensors[f"{name}.bias"] if f"{name}.bias" in tensors else np.zeros_like(mean)
    factor = scale / np.sqrt(variance + EPSILON)
    return factor, bias - mean * factor


def embedding_onnx(tensors: Tensors) -> bytes:
    """The ONNX file: features (batch, frames, 80), their mean taken off, to embeddings (batch, 192), not normalized.

    There is no activation behind the last normalization: the authors' configuration has none, and one there doubles
    the error rate of verification.
    """
    net = OnnxWriter()
    x = net.apply("Transpose", "features", perm=[0, 2, 1])
    x = net.apply("Unsqueeze", x, net.weight(np.array([1], np.int64)))
    x = _front_end(net, x, tensors)
    x = _folded_convolution(
        net, x, tensors, "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm", strides=[2], pads=[2, 2]
    )
    x = net.apply("Relu", x)
    for block, (layers, dilation) in enumerate(BLOCKS, start=1):
        for layer in range(1, layers + 1):
            name = f"xvector.block{block}.tdnnd{layer}"
            x = net.apply("Concat", x, _dense_layer(net, x, tensors, name, dilation), axis=1)
        name = f"xvector.transit{block}"
        weight = tensors[f"{name}.linear.weight"]
        x = _activated_convolution(net, x, tensors, f"{name}.nonlinear.batchnorm", weight, None)
    x = net.apply("Relu", net.affine(x, *batch_normalization(tensors, "xvector.out_nonlinear.batchnorm")))
    x = _statistics(net, x)
    factor, shift = batch_normalization(tensors, "xvector.dense.nonlinear.batchnorm")
    weight = tensors["xvector.dense.linear.weight"][:, :, 0] * factor[:, None]
    x = net.apply("Add", net.apply("MatMul", x, net.weight(weight.T)), net.weight(shift))
    return net.finish("CAM++", {"features": ["batch", "frames", FEATURES]}, x, ["batch", EMBEDDING])


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


def _activated_convolution(
    net: OnnxWriter, x: str, tensors: Tensors, normalization: str, weight: NDArray[Any], bias: NDArray[Any] | None
) -> str:
    """A 1x1 convolution of the rectified, normalized ``x``, in which ``x`` is passed over once before the product.

    With a positive factor f, max(f x + s, 0) = f max(x, -s/f) + s, and with a negative one it is f min(x, -s/f) + s:
    the factor goes into the weights, the shift into the bias.
    """
    factor, shift = batch_normalization(tensors, normalization)
    factor = np.where(np.abs(factor) < _SMALLEST_FACTOR, _SMALLEST_FACTOR, factor)
    threshold = -shift / factor
    lowest = np.where(factor > 0, threshold, -np.inf).reshape(1, -1, 1)
    x = net.apply("Max", x, net.weight(lowest))
    if np.any(factor < 0):
        x = net.apply("Min", x, net.weight(np.where(factor < 0, threshold, np.inf).reshape(1, -1, 1)))
    folded = weight * factor[None, :, None]
    constant = weight[:, :, 0].astype(np.float64) @ shift + (0.0 if bias is None else bias)
    return net.apply("Conv", x, net.weight(folded), net.weight(constant))


def _dense_layer(net: OnnxWriter, x: str, tensors: Tensors, name: str, dilation: int) -> str:
    """What a layer adds: 32 channels, masked by what the window as a whole sounds like."""
    factor, shift = batch_normalization(tensors, f"{name}.nonlinear2.batchnorm")
    weight = tensors[f"{name}.linear1.weight"] * factor[:, None, None]
    x = net.apply("Relu", _activated_convolution(net, x, tensors, f"{name}.nonlinear1.batchnorm", weight, shift))
    local = net.apply(
        "Conv",
        x,
        net.weight(tensors[f"{name}.cam_layer.linear_local.weight"]),
        dilations=[dilation],
        pads=[dilation, dilation],
    )
    mean = net.apply("ReduceMean", x, axes=[2], keepdims=1)
    # The mean over the window plus the mean over its one block.
    weight, bias = (tensors[f"{name}.cam_layer.linear1.{part}"] for part in ("weight", "bias"))
    mask = net.apply("Relu", net.apply("Conv", mean, net.weight(2 * weight), net.weight(bias)))
    weight, bias = (tensors[f"{name}.cam_layer.linear2.{part}"] for part in ("weight", "bias"))
    mask = net.apply("Sigmoid", net.apply("Conv", mask, net.weight(weight), net.weight(bias)))
    return net.apply("Mul", local, mask)


def _statistics(net: OnnxWriter, x: str) -> str:
    """Mean and unbiased deviation over time, (batch, 2 * channels)."""
    mean = net.apply("ReduceMean", x, axes=[2], keepdims=1)
    apart = net.apply("Sub", x, mean)
    total = net.apply("ReduceSum", net.apply("Mul", apart, apart), net.weight(np.array([2], np.int64)), keepdims=0)
    length = net.apply("Gather", net.apply("Shape", x), net.weight(np.array([2], np.int64)))
    count = net.apply("Sub", net.apply("Cast", length, to=1), net.weight(np.array([1], np.float32)))
    deviation = net.apply("Sqrt", net.apply("Div", total, count))
    mean = net.apply("Squeeze", mean, net.weight(np.array([2], np.int64)))
    return net.apply("Concat", mean, deviation, axis=1)
