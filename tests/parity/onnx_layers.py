"""ONNX's operators on images, normalisation, attention and losses in terms of `tinydiff.ops`; see onnx_operators.py."""

import numpy as np

from tests.parity.onnx_operators import NotApplicable, adapter, array, integers
from tinydiff import ops


def to_nhwc(x):
    """(N, C, L) and (N, C, H, W) as images (N, H, W, C)."""
    if x.ndim == 3:
        x = ops.expand_dims(x, 2)
    if x.ndim != 4:
        raise NotApplicable("volumes; tinydiff's images have two dimensions")
    return ops.transpose(x, (0, 2, 3, 1))


def from_nhwc(y, ndim):
    y = ops.transpose(y, (0, 3, 1, 2))
    return ops.squeeze(y, 2) if ndim == 3 else y


def two(values, ndim, default):
    """ONNX's list, one number for each spatial axis, as (vertical, horizontal)."""
    values = list(values) if values is not None else [default] * (ndim - 2)
    return tuple(values) if len(values) == 2 else (default, *values)


def margins(attributes, size, window, stride, dilation, ndim):
    """((top, bottom), (left, right)) of pads or auto_pad."""
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        result = []
        for n, w, s, d in zip(size, window, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (w - 1) + 1 - n)
            small = total // 2
            result.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
        return tuple(result)
    pads = list(attributes.get("pads", [0] * (2 * (ndim - 2))))
    if ndim == 3:
        pads = [0, pads[0], 0, pads[1]]
    if min(pads) < 0:
        raise NotApplicable("negative padding")
    return (pads[0], pads[2]), (pads[1], pads[3])


# Images


@adapter("Conv")
def _conv(attributes, x, w, b=None):
    ndim, size = array(x).ndim, array(w).shape[2:]
    window, stride = two(size, ndim, 1), two(attributes.get("strides"), ndim, 1)
    dilation = two(attributes.get("dilations"), ndim, 1)
    images, filters = to_nhwc(x), ops.transpose(to_nhwc(w), (1, 2, 3, 0))  # (K, C, R, S) -> (R, S, C, K)
    padding = margins(attributes, images.shape[1:3], window, stride, dilation, ndim)
    return from_nhwc(ops.conv2d(images, filters, b, stride, padding, dilation, attributes.get("group", 1)), ndim)


@adapter("ConvTranspose")
def _conv_transpose(attributes, x, w, b=None):
    """ONNX's filters are (C in, C out / group, R, S), where C in is tinydiff's K."""
    ndim, groups = array(x).ndim, attributes.get("group", 1)
    window, stride = two(array(w).shape[2:], ndim, 1), two(attributes.get("strides"), ndim, 1)
    dilation, extra = two(attributes.get("dilations"), ndim, 1), two(attributes.get("output_padding"), ndim, 0)
    images, filters = to_nhwc(x), ops.transpose(to_nhwc(w), (1, 2, 3, 0))
    geometry = zip(images.shape[1:3], stride, dilation, window, extra, strict=True)
    full = [(n - 1) * s + d * (r - 1) + 1 + e for n, s, d, r, e in geometry]
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if "output_shape" in attributes or mode.startswith("SAME"):
        same = [n * s for n, s in zip(images.shape[1:3], stride, strict=True)]
        wanted = two(attributes.get("output_shape", same), ndim, 1)
        padding = []
        for have, want in zip(full, wanted, strict=True):
            total = have - want
            if total < 0:
                raise NotApplicable("an output larger than the adjoint of any convolution gives")
            small = total // 2
            padding.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
        padding = tuple(padding)
    else:
        padding = margins(attributes, None, None, None, None, ndim)
    return from_nhwc(ops.conv_transpose2d(images, filters, b, stride, padding, extra, dilation, groups), ndim)


def read_pool(attributes, x):
    ndim = array(x).ndim
    if array(x).dtype.kind != "f":
        raise NotApplicable("pooling of integers")
    if any(d != 1 for d in attributes.get("dilations", [])):
        raise NotApplicable("pooling with dilation")
    if attributes.get("ceil_mode"):
        raise NotApplicable("pooling windows that reach over the padded image")
    if attributes.get("storage_order"):
        raise NotApplicable("column-major indices")
    images = to_nhwc(x)
    window, stride = two(attributes["kernel_shape"], ndim, 1), two(attributes.get("strides"), ndim, 1)
    return images, window, stride, margins(attributes, images.shape[1:3], window, stride, (1, 1), ndim)


@adapter("AveragePool")
def _average_pool(attributes, x):
    images, window, stride, padding = read_pool(attributes, x)
    y = ops.avg_pool2d(images, window, stride, padding)
    if not attributes.get("count_include_pad"):
        y = y / ops.avg_pool2d(np.ones_like(images.data), window, stride, padding)
    return from_nhwc(y, array(x).ndim)


@adapter("MaxPool")
def _max_pool(attributes, x):
    if attributes["__outputs__"] > 1:
        raise NotApplicable("the places of the maxima as a second output")
    images, window, stride, padding = read_pool(attributes, x)
    if any(2 * max(p) > w for p, w in zip(padding, window, strict=True)):
        raise NotApplicable("padding of more than half the pooling window")
    return from_nhwc(ops.max_pool2d(images, window, stride, padding), array(x).ndim)


@adapter("GlobalAveragePool")
def _global_average_pool(attributes, x):
    return ops.mean(x, tuple(range(2, array(x).ndim)), keepdims=True)


@adapter("GlobalMaxPool")
def _global_max_pool(attributes, x):
    return ops.max(x, tuple(range(2, array(x).ndim)), keepdims=True)


@adapter("Resize", "Upsample")
def _resize(attributes, x, roi=None, scales=None, sizes=None):
    if attributes["__op__"] == "Upsample" and scales is None:
        roi, scales = None, roi if roi is not None else attributes["scales"]
    if attributes.get("mode", b"nearest") != b"nearest":
        raise NotApplicable("interpolation other than nearest")
    shape = array(x).shape
    axes = attributes.get("axes", range(len(shape)))
    if sizes is not None:
        scales = [n / shape[axis] for n, axis in zip(integers(sizes), axes, strict=True)]
    given = dict(zip(axes, array(scales).ravel().tolist(), strict=True)) if scales is not None else {}
    scales = [given.get(axis, 1.0) for axis in range(len(shape))]
    if len(scales) != 4 or scales[:2] != [1, 1] or any(s < 1 or s != int(s) for s in scales):
        raise NotApplicable("resizing by other than whole factors")
    where = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    how = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    if attributes["__op__"] == "Resize" and (where, how[:5]) not in {("half_pixel", "round"), ("asymmetric", "floor")}:
        raise NotApplicable("resizing by another rule for coordinates")
    return from_nhwc(ops.upsample_nearest2d(to_nhwc(x), (int(scales[2]), int(scales[3]))), 4)


# Normalisation, attention, losses


@adapter("GroupNormalization")
def _group_norm(attributes, x, scale, bias):
    if attributes["__opset__"] < 21:
        raise NotApplicable("a scale for each group instead of each channel")
    images = ops.transpose(x, (0, *range(2, array(x).ndim), 1))
    y = ops.group_norm(images, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))
    return ops.transpose(y, (0, y.ndim - 1, *range(1, y.ndim - 1)))


@adapter("BatchNormalization")
def _batch_norm(attributes, x, scale, bias, mean, variance):
    rows = ops.transpose(x, (0, *range(2, array(x).ndim), 1))
    share, eps = attributes.get("momentum", 0.9), attributes.get("epsilon", 1e-5)
    training = attributes.get("training_mode", 0)
    y = ops.batch_norm(rows, scale, bias, *([] if training else [mean, variance]), eps=eps)
    y = ops.transpose(y, (0, y.ndim - 1, *range(1, y.ndim - 1)))
    if not training:
        return y
    axes = tuple(range(rows.ndim - 1))
    return y, share * mean + (1 - share) * ops.mean(rows, axes), share * variance + (1 - share) * ops.var(rows, axes)


@adapter("InstanceNormalization")
def _instance_norm(attributes, x, scale, bias):
    images = ops.transpose(x, (0, *range(2, array(x).ndim), 1))
    y = ops.group_norm(images, images.shape[-1], scale, bias, attributes.get("epsilon", 1e-5))
    return ops.transpose(y, (0, y.ndim - 1, *range(1, y.ndim - 1)))


@adapter("LayerNormalization")
def _layer_norm(attributes, x, scale, bias=None):
    shape, axis, eps = array(x).shape, attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    axis += len(shape) if axis < 0 else 0
    rows = ops.reshape(x, (*shape[:axis], -1))
    flat = [None if p is None else ops.reshape(p, -1) for p in (scale, bias)]
    y = ops.reshape(ops.layer_norm(rows, *flat, eps), shape)
    if attributes["__outputs__"] == 1:
        return y
    axes = tuple(range(axis, len(shape)))
    return y, ops.mean(x, axes, keepdims=True), 1 / ops.sqrt(ops.var(x, axes, keepdims=True) + eps)


@adapter("Attention")
def _attention(attributes, q, k, v, mask=None, past_k=None, past_v=None, lengths=None):
    if past_k is not None or past_v is not None or lengths is not None or attributes["__outputs__"] > 1:
        raise NotApplicable("attention with a cache or with its inner values as outputs")
    if attributes.get("softcap") or attributes.get("softmax_precision") or "left_window_size" in attributes:
        raise NotApplicable("attention with a window, a cap or another precision")
    flat = array(q).ndim == 3
    if flat:  # (N, L, heads D) -> (N, heads, L, D)
        heads = attributes["q_num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"]
        q, k, v = (
            ops.transpose(ops.reshape(a, (*array(a).shape[:2], h, -1)), (0, 2, 1, 3))
            for a, h in zip((q, k, v), heads, strict=True)
        )
    if array(q).shape[1] != array(k).shape[1]:
        raise NotApplicable("heads that share keys and values")
    L, M = array(q).shape[2], array(k).shape[2]
    mask = None if mask is None else array(mask)
    if mask is not None and mask.shape[-1] < M:
        raise NotApplicable("a mask shorter than the keys")
    if attributes.get("is_causal"):
        causal = np.tril(np.ones((L, M), bool))
        mask = causal if mask is None else mask & causal if mask.dtype == bool else np.where(causal, mask, -np.inf)
        mask = mask if mask.dtype == bool else mask.astype(array(q).dtype)
    y = ops.attention(q, k, v, mask, attributes.get("scale"))
    return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (array(q).shape[0], L, -1)) if flat else y


def rows_of(x):
    """(N, C, ...) -> (rows, C)."""
    return ops.reshape(ops.transpose(x, (0, *range(2, array(x).ndim), 1)), (-1, array(x).shape[1]))


@adapter("SoftmaxCrossEntropyLoss")
def _cross_entropy(attributes, x, labels, weights=None):
    if weights is not None or attributes.get("ignore_index") in array(labels):
        raise NotApplicable("class weights and ignored labels")
    reduction = attributes.get("reduction", b"mean").decode()
    loss = ops.cross_entropy(rows_of(x), array(labels).ravel(), reduction)
    loss = ops.reshape(loss, array(labels).shape) if reduction == "none" else loss
    return (loss, ops.log_softmax(x, axis=1)) if attributes["__outputs__"] > 1 else loss


@adapter("NegativeLogLikelihoodLoss")
def _negative_log_likelihood(attributes, x, labels, weights=None):
    if weights is not None or attributes.get("ignore_index") in array(labels):
        raise NotApplicable("class weights and ignored labels")
    rows, flat = rows_of(x), array(labels).ravel()
    loss = -ops.reshape(rows[np.arange(flat.size), flat], array(labels).shape)
    return {"none": lambda y: y, "sum": ops.sum, "mean": ops.mean}[attributes.get("reduction", b"mean").decode()](loss)
