"""One rule for each operator: how to compute it on a map in two parts.

A rule is called as ``rule(operator, *args, **kwargs)`` instead of ``operator(*args, **kwargs)``, with
at least one pair among the arguments. It returns the operator's result, with pairs for maps, or ``NotImplemented``:
then the operator gets the whole maps. A rule need not support all uses of its operator, but must be exact.
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
from .window import Box, union

# ------------------------------------------------- operators on several maps of the same size


def pointwise(operator: Callable, *args: Any, **kwargs: Any):
    """Each pixel of the result depends on the same pixel of the operands only, as in ``relu`` and ``add``.

    Operands may be pairs, numbers, and tensors that are the same for all images.
    """
    if kwargs.pop("inplace", False):
        return in_place(operator, *args, out_of_place=operator, **kwargs)
    pairs = [value for value in args if isinstance(value, Pair)]
    if not pairs or any(isinstance(value, Tensor) for value in kwargs.values()):
        return NotImplemented
    first, box = pairs[0], _common_box(pairs)
    operands = [_operands(value, first, box) for value in args] if box else [None]
    if None in operands:
        return NotImplemented
    shared = first.network_pass.on_shared(operator, *(on_shared for on_shared, _ in operands), **kwargs)
    region = operator(*(on_region for _, on_region in operands), **kwargs)
    return _mark_if_view(first, first.with_parts(shared, region, box))


def in_place(operator: Callable, target: Any, *args: Any, out_of_place: Callable, **kwargs: Any):
    """The result of the same operator out of place overwrites its first operand."""
    result = pointwise(out_of_place, target, *args, **kwargs) if isinstance(target, Pair) else NotImplemented
    if not isinstance(result, Pair) or result.dtype != target.dtype:
        return NotImplemented
    return target.overwrite(result)


def cat(operator: Callable, tensors, dim=0):
    """Maps of the same size, concatenated along the channels."""
    pairs = [value for value in tensors if isinstance(value, Pair)]
    box = _common_box(pairs) if len(pairs) == len(tensors) else None
    if box is None or dim % 4 != pairs[0].channel_axis:
        return NotImplemented
    shared = pairs[0].network_pass.on_shared(operator, [pair.shared for pair in pairs], dim)
    region = operator([pair.read_window(box) for pair in pairs], dim)
    return pairs[0].with_parts(shared, region, box)


def _common_box(pairs: list[Pair]) -> Box | None:
    """Return a box that contains those of all pairs; None if they do not fit together or it is too large."""
    first = pairs[0]
    if len(pairs) == 1:
        return first.box
    if any(pair.axes != first.axes or pair.canvas != first.canvas for pair in pairs):
        return None
    box = reduce(union, (pair.box for pair in pairs))
    return None if first.network_pass.is_too_large(box, first.canvas, first.shape[0]) else box


def _operands(value: Any, like: Pair, box: Box) -> tuple[Any, Any] | None:
    """Return an operand for the shared map and one for the region; None if it differs between images."""
    if isinstance(value, Pair):
        return value.shared, value.read_window(box)
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


# ------------------------------------------------- operators on one map that do not move its pixels


def on_parts(operator: Callable, input: Pair, *args: Any, axes: Axes | None = None, **kwargs: Any):
    """Apply an operator that treats every pixel alike to both parts; several results become several pairs."""
    shared = input.network_pass.on_shared(operator, input.shared, *args, **kwargs)
    region = operator(input.region, *args, **kwargs)
    if isinstance(region, Tensor):
        return _mark_if_view(input, input.with_parts(shared, region, input.box, axes))
    parts = zip(shared, region, strict=True)
    return tuple(_mark_if_view(input, input.with_parts(*part, input.box, axes)) for part in parts)


def _mark_if_view(pair: Pair, result: Tensor) -> Tensor:
    """Return the result of an operator on a pair, marked if it uses the memory of the pair."""
    if isinstance(result, Pair) and same_memory(result.region, pair.region):
        result.mark_as_view_of(pair)
    return result


def batch_norm(
    operator, input, running_mean, running_var, weight=None, bias=None, training=False, *rest, **options
):
    """With its running statistics, not those of the batch."""
    if training:
        return NotImplemented
    return on_parts(operator, input, running_mean, running_var, weight, bias, training, *rest, **options)


def dropout(operator, input, p=0.5, training=True, inplace=False):
    """The identity in evaluation mode."""
    return NotImplemented if training else input


def layer_norm(operator, input, normalized_shape, *args, **kwargs):
    """Over the channels of each pixel."""
    if len(normalized_shape) != 1:
        return NotImplemented
    return on_parts(operator, input, normalized_shape, *args, **kwargs)


def reduction(operator, input, dim, keepdim=False, **options):
    """``mean`` and the like over the channels of each pixel."""
    if not keepdim or not _is_channels(input, dim):
        return NotImplemented
    return on_parts(operator, input, dim=dim, keepdim=keepdim, **options)


def softmax(operator, input, dim, **options):
    """Over the channels of each pixel."""
    return on_parts(operator, input, dim=dim, **options) if _is_channels(input, dim) else NotImplemented


def split(operator, input, size, dim=0):
    """``chunk`` and ``split`` along the channels."""
    return on_parts(operator, input, size, dim) if _is_channels(input, dim) else NotImplemented


def getitem(operator, input, index):
    """A slice of the channels, ``x[:, 4:8]``."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(item, slice) for item in index):
        return NotImplemented
    if any(item != slice(None) for axis, item in enumerate(index) if axis != input.channel_axis):
        return NotImplemented
    return on_parts(operator, input, index)


def permute(operator, input, *dims):
    """Move the channels last or back; batch, height and width keep their order."""
    order = [axis % 4 for axis in (dims if isinstance(dims[0], int) else dims[0])]
    axes = (order.index(input.axes[0]), order.index(input.axes[1]))
    if order[0] != 0 or axes not in ((1, 2), (2, 3)):
        return NotImplemented
    return on_parts(operator, input, order, axes=axes)


def _is_channels(input: Pair, dim: Any) -> bool:
    dims = (dim,) if isinstance(dim, int) else dim
    return isinstance(dims, (list, tuple)) and [axis % 4 for axis in dims] == [input.channel_axis]


# ------------------------------------------------- the table


def for_one_map(rule: Callable, channel_axis: int | None = None) -> Callable:
    """Return a rule that is limited to calls whose only pair is the first argument.

    Args:
        rule: The rule without this check.
        channel_axis: The axis at which the pair must have its channels; None for any.
    """

    @wraps(rule)
    def checked(operator, input, *args, **kwargs):
        if not isinstance(input, Pair) or channel_axis not in (None, input.channel_axis):
            return NotImplemented
        if any(isinstance(value, Pair) for value in (*args, *kwargs.values())):
            return NotImplemented
        return rule(operator, input, *args, **kwargs)

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
ANY_ORDER = {
    dropout: [F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout],
    reduction: [getattr(owner, name) for owner in (torch, Tensor) for name in ("mean", "sum", "var", "amax")]
    + [torch.var_mean],
    softmax: [F.softmax],
    split: [torch.chunk, torch.split, Tensor.chunk, Tensor.split],
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
    for rules, channel_axis in ((CHANNELS_FIRST, 1), (CHANNELS_LAST, 3), (ANY_ORDER, None)):
        for rule, operators in rules.items():
            table |= dict.fromkeys(operators, for_one_map(rule, channel_axis))
    for owner in (torch, Tensor, F, torch._C._nn):
        for name in POINTWISE.split():
            operator, operator_in_place = getattr(owner, name, None), getattr(owner, f"{name}_", None)
            if operator is not None:
                table[operator] = pointwise
            if operator is not None and operator_in_place is not None:
                table[operator_in_place] = partial(in_place, out_of_place=operator)
    return table


RULES = _table()
"""Operator, as ``__torch_function__`` receives it, to rule."""
