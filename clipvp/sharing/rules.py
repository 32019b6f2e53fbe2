"""One rule an operator: how it works on a map in two parts.

A rule is called as ``rule(run, operator, *args, **kwargs)`` in the place of ``operator(*args, **kwargs)``,
with at least one pair among the arguments. It returns what the operator would, with pairs for maps, or
``NotImplemented``: then the operator gets the whole maps. So a rule may know as few uses of its operator as
it likes, as long as those are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .pair import Axes, Pair, same_memory
from .sliding import avg_pool2d, conv2d, max_pool2d, pad
from .window import Box, join

# ------------------------------------------------- operators whose operands are any maps of one size


def pointwise(run, operator: Callable, *args: Any, **kwargs: Any):
    """A pixel of the result comes from that pixel of the operands, as in ``relu`` and ``add``.

    Operands may be pairs, numbers, and tensors that are the same for all images.
    """
    if kwargs.pop("inplace", False):
        return in_place(run, operator, *args, plain=operator, **kwargs)
    pairs = [value for value in args if isinstance(value, Pair)]
    if not pairs or any(isinstance(value, Tensor) for value in kwargs.values()):
        return NotImplemented
    box = _common_box(run, pairs)
    parts = [_parts(value, pairs[0], box) for value in args] if box else [None]
    if None in parts:
        return NotImplemented
    shared = run.on_shared(operator, *(part[0] for part in parts), **kwargs)
    region = operator(*(part[1] for part in parts), **kwargs)
    return _perhaps_view(pairs[0], run.pair(shared, region, box, pairs[0].axes))


def in_place(run, operator: Callable, target: Any, *args: Any, plain: Callable, **kwargs: Any):
    """The result of the operator's plain twin takes the place of its first operand."""
    result = pointwise(run, plain, target, *args, **kwargs) if isinstance(target, Pair) else NotImplemented
    if not isinstance(result, Pair) or result.dtype != target.dtype:
        return NotImplemented
    return target.become(result)


def cat(run, operator: Callable, tensors, dim=0):
    """Maps of one size, one after another along the channels."""
    pairs = [value for value in tensors if isinstance(value, Pair)]
    box = _common_box(run, pairs) if len(pairs) == len(tensors) else None
    if box is None or dim % 4 != pairs[0].channel_axis:
        return NotImplemented
    shared = run.on_shared(operator, [pair.shared for pair in pairs], dim)
    return run.pair(shared, operator([pair.look(box) for pair in pairs], dim), box, pairs[0].axes)


def _common_box(run, pairs: list[Pair]) -> Box | None:
    """Return the box in which all pairs can work together; None where they had better not."""
    first = pairs[0]
    if len(pairs) == 1:
        return first.box
    if any(pair.axes != first.axes or pair.canvas != first.canvas for pair in pairs):
        return None
    box = reduce(join, (pair.box for pair in pairs))
    return None if run.fills(box, first.canvas, first.shape[0]) else box


def _parts(value: Any, like: Pair, box: Box) -> tuple[Any, Any] | None:
    """Return an operand for the shared map and one for the region; None where it differs between images."""
    if isinstance(value, Pair):
        return value.shared, value.look(box)
    if not isinstance(value, Tensor):
        return value, value
    sizes = (1,) * (4 - value.ndim) + tuple(value.shape)
    if len(sizes) > 4 or sizes[0] != 1:
        return None
    size = (sizes[like.axes[0]], sizes[like.axes[1]])
    if size == (1, 1):
        return value, value
    if size == like.canvas:
        rows = value.narrow(like.axes[0] - 4, box[0], box[2] - box[0])
        return value, rows.narrow(like.axes[1] - 4, box[1], box[3] - box[1])
    return None


# ------------------------------------------------- operators that leave the pixels of a map where they are


def on_parts(run, operator: Callable, input: Pair, *args: Any, axes: Axes | None = None, **kwargs: Any):
    """The operator works on a pixel without asking where it is; of several results it makes several pairs."""
    shared = run.on_shared(operator, input.shared, *args, **kwargs)
    region = operator(input.region, *args, **kwargs)
    axes = axes or input.axes
    if isinstance(region, Tensor):
        return _perhaps_view(input, run.pair(shared, region, input.box, axes))
    parts = zip(shared, region, strict=True)
    return tuple(_perhaps_view(input, run.pair(one, other, input.box, axes)) for one, other in parts)


def _perhaps_view(pair: Pair, result: Tensor) -> Tensor:
    if isinstance(result, Pair) and same_memory(result.region, pair.region):
        result.note_view_of(pair)
    return result


def batch_norm(
    run, operator, input, running_mean, running_var, weight=None, bias=None, training=False, *rest, **how
):
    """With the statistics it was frozen with."""
    if training:
        return NotImplemented
    return on_parts(run, operator, input, running_mean, running_var, weight, bias, training, *rest, **how)


def dropout(run, operator, input, p=0.5, training=True, inplace=False):
    """Nothing, unless it trains."""
    return NotImplemented if training else input


def layer_norm(run, operator, input, normalized_shape, *args, **kwargs):
    """Over the channels of each pixel."""
    if len(normalized_shape) != 1:
        return NotImplemented
    return on_parts(run, operator, input, normalized_shape, *args, **kwargs)


def reduction(run, operator, input, dim, keepdim=False, **how):
    """``mean`` and its like over the channels of each pixel."""
    if not keepdim or not _is_channels(input, dim):
        return NotImplemented
    return on_parts(run, operator, input, dim=dim, keepdim=keepdim, **how)


def softmax(run, operator, input, dim, **how):
    """Over the channels of each pixel."""
    return on_parts(run, operator, input, dim=dim, **how) if _is_channels(input, dim) else NotImplemented


def pieces(run, operator, input, size, dim=0):
    """``chunk`` and ``split`` along the channels."""
    return on_parts(run, operator, input, size, dim) if _is_channels(input, dim) else NotImplemented


def getitem(run, operator, input, index):
    """A slice of the channels, ``x[:, 4:8]``."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(item, slice) for item in index):
        return NotImplemented
    if any(item != slice(None) for axis, item in enumerate(index) if axis != input.channel_axis):
        return NotImplemented
    return on_parts(run, operator, input, index)


def permute(run, operator, input, *dims):
    """Channels to the end, and back; batch, height and width keep their order."""
    order = [axis % 4 for axis in (dims if isinstance(dims[0], int) else dims[0])]
    axes = (order.index(input.axes[0]), order.index(input.axes[1]))
    if order[0] != 0 or axes not in ((1, 2), (2, 3)):
        return NotImplemented
    return on_parts(run, operator, input, order, axes=axes)


def _is_channels(input: Pair, dim: Any) -> bool:
    dims = (dim,) if isinstance(dim, int) else dim
    return isinstance(dims, (list, tuple)) and [axis % 4 for axis in dims] == [input.channel_axis]


# ------------------------------------------------- the table


def of_a_map(rule: Callable, channel_axis: int | None = None) -> Callable:
    """Return the rule for calls whose only pair is the first argument, perhaps in one order of axes."""

    @wraps(rule)
    def checked(run, operator, input, *args, **kwargs):
        if not isinstance(input, Pair) or channel_axis not in (None, input.channel_axis):
            return NotImplemented
        if any(isinstance(value, Pair) for value in (*args, *kwargs.values())):
            return NotImplemented
        return rule(run, operator, input, *args, **kwargs)

    return checked


CHANNELS_FIRST = {
    conv2d: [torch.conv2d],
    max_pool2d: [F.max_pool2d, torch.max_pool2d],
    avg_pool2d: [F.avg_pool2d],
    pad: [F.pad],
    batch_norm: [F.batch_norm],
    on_parts: [torch.prelu, Tensor.prelu],
}
CHANNELS_LAST = {
    on_parts: [F.linear],
    layer_norm: [F.layer_norm, F.rms_norm],
}
EITHER = {
    dropout: [F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout],
    reduction: [getattr(home, name) for home in (torch, Tensor) for name in ("mean", "sum", "var", "amax")]
    + [torch.var_mean],
    softmax: [F.softmax],
    pieces: [torch.chunk, torch.split, Tensor.chunk, Tensor.split],
    getitem: [Tensor.__getitem__],
    permute: [torch.permute, Tensor.permute],
}
POINTWISE = (
    "abs add addcdiv addcmul bfloat16 celu clamp clamp_max clamp_min clip clone contiguous detach div divide "
    "double elu erf exp float gelu half hardshrink hardsigmoid hardswish hardtanh leaky_relu lerp log "
    "logsigmoid maximum minimum mish mul multiply neg negative pow reciprocal relu relu6 rsqrt rsub selu "
    "sigmoid silu softplus softshrink softsign sqrt square sub subtract tanh tanhshrink threshold to "
    "true_divide where __rdiv__ __rpow__ __rsub__ __rtruediv__"
)


def _table() -> dict[Callable, Callable]:
    table = {torch.cat: cat, torch.concat: cat}
    for rules, channel_axis in ((CHANNELS_FIRST, 1), (CHANNELS_LAST, 3), (EITHER, None)):
        for rule, operators in rules.items():
            table |= dict.fromkeys(operators, of_a_map(rule, channel_axis))
    for home in (torch, Tensor, F, torch._C._nn):
        for name in POINTWISE.split():
            operator, twin = getattr(home, name, None), getattr(home, f"{name}_", None)
            if operator is not None:
                table[operator] = pointwise
            if operator is not None and twin is not None:
                table[twin] = partial(in_place, plain=operator)
    return table


RULES = _table()
"""Operator, as ``__torch_function__`` gets it, to rule."""
