"""One rule for each operator: how to compute it on a map in parts.

A rule is called as ``rule(operator, *args, **kwargs)`` instead of ``operator(*args, **kwargs)``, with
at least one map in parts among the arguments. It returns the operator's result, or ``NotImplemented``:
then the operator gets the whole maps. A rule need not support all uses of its operator, but must be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .sliding import avg_pool2d, conv2d, max_pool2d, pad
from .split_map import Axes, SplitMap
from .window import Box, Layout, intersection, union

# ------------------------------------------------- operators on several maps of the same size


def pointwise(operator: Callable, *args: Any, **kwargs: Any):
    """Each pixel of the result depends on the same pixel of the operands only, as in ``relu`` and ``add``.

    Operands may be maps in parts, numbers, and tensors that are the same for all images.
    """
    if kwargs.pop("inplace", False):
        return in_place(operator, *args, out_of_place=operator, **kwargs)
    maps = [value for value in args if isinstance(value, SplitMap)]
    if not maps or any(isinstance(value, Tensor) for value in kwargs.values()):
        return NotImplemented
    first, layout = maps[0], _common_layout(maps)
    operands = [_operands(value, first, layout) for value in args] if layout else [None]
    if None in operands:
        return NotImplemented
    return first.mark_views(_on_each(first, layout, operator, list(zip(*operands, strict=True)), kwargs))


def in_place(operator: Callable, target: Any, *args: Any, out_of_place: Callable, **kwargs: Any):
    """The result of the same operator out of place overwrites its first operand."""
    in_parts = isinstance(target, SplitMap)
    result = pointwise(out_of_place, target, *args, **kwargs) if in_parts else NotImplemented
    if not isinstance(result, SplitMap) or result.dtype != target.dtype:
        return NotImplemented
    return target.overwrite(result)


def cat(operator: Callable, tensors, dim=0):
    """Maps of the same size, concatenated along the channels."""
    maps = [value for value in tensors if isinstance(value, SplitMap)]
    layout = _common_layout(maps) if len(maps) == len(tensors) else None
    if layout is None or dim % 4 != maps[0].channel_axis:
        return NotImplemented
    parts = zip(*(each.at(layout) for each in maps), strict=True)
    arguments = [None if None in each else (list(each), dim) for each in map(tuple, parts)]
    return _on_each(maps[0], layout, operator, arguments, {})


def _on_each(like: SplitMap, layout: Layout, operator: Callable, arguments: list[tuple | None], kwargs: dict):
    """Return the results of an operator on the parts of a layout.

    Args:
        like: A map of the pass and with the axes of the result.
        layout: Of the result.
        operator: Called for each part.
        arguments: Of the operator for outer part, ring and core; where there is no such part, None or with a None.
        kwargs: Further arguments, the same for all parts.
    """
    network_pass, (on_outer, *on_ring, on_core) = like.network_pass, arguments
    outer = network_pass.on_outer(operator, *on_outer, **kwargs) if layout.has_outer else None
    ring = [operator(*each, **kwargs) for each in on_ring]
    core = None
    if layout.core is not None:
        core = network_pass.on_core(partial(operator, **kwargs), *on_core)
    return like.with_parts(layout, [outer, *ring, core])


def _common_layout(maps: list[SplitMap]) -> Layout | None:
    """Return a layout in which all maps can be; None if they do not fit together or nothing is gained by parts."""
    first = maps[0]
    if len(maps) == 1:
        return first.layout
    if any(each.axes != first.axes or each.canvas != first.canvas for each in maps):
        return None
    box = reduce(union, (each.layout.box for each in maps))
    cores = [each.layout.core for each in maps]
    core = None if None in cores else reduce(intersection, cores)
    per_image = any(each.parts.outer is not None and len(each.parts.outer) > 1 for each in maps)
    layout = first.network_pass.settle(Layout(first.canvas, box).with_core(core), per_image)
    return None if layout.is_whole else layout


def _operands(value: Any, like: SplitMap, layout: Layout) -> list[Any] | None:
    """Return an operand for each part of a layout; None if it differs between images."""
    if isinstance(value, SplitMap):
        return value.at(layout)
    boxes = [layout.whole, *layout.ring, layout.core]
    if not isinstance(value, Tensor):
        return [value for _ in boxes]
    sizes = (1,) * (4 - value.ndim) + tuple(value.shape)
    # A tensor with a gradient may have been made from one image's map.
    if len(sizes) > 4 or sizes[0] != 1 or value.requires_grad:
        return None
    size = (sizes[like.axes[0]], sizes[like.axes[1]])
    if size == (1, 1):
        return [value for _ in boxes]
    if size == like.canvas:
        return [box and _narrowed(value, box, like.axes) for box in boxes]
    return None


def _narrowed(value: Tensor, box: Box, axes: Axes) -> Tensor:
    """Return the view of a tensor inside a box; ``value`` itself where that is all, for the cache of results."""
    for axis, low, high in ((axes[0] - 4, box[0], box[2]), (axes[1] - 4, box[1], box[3])):
        if high - low < value.shape[axis]:
            value = value.narrow(axis, low, high - low)
    return value


# ------------------------------------------------- operators on one map that do not move its pixels


def on_parts(operator: Callable, input: SplitMap, *args: Any, axes: Axes | None = None, **kwargs: Any):
    """Apply an operator that treats every pixel alike to all parts; several results become several maps."""
    parts, network_pass = input.parts, input.network_pass
    outer = core = None
    if parts.outer is not None:
        outer = network_pass.on_outer(operator, parts.outer, *args, **kwargs)
    ring = [operator(part, *args, **kwargs) for part in parts.ring]
    if parts.core is not None:
        core = network_pass.on_core(partial(operator, **kwargs), parts.core, *args)
    return input.mark_views(input.with_parts(input.layout, [outer, *ring, core], axes))


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


def _is_channels(input: SplitMap, dim: Any) -> bool:
    dims = (dim,) if isinstance(dim, int) else dim
    return isinstance(dims, (list, tuple)) and [axis % 4 for axis in dims] == [input.channel_axis]


# ------------------------------------------------- the table


def for_one_map(rule: Callable, channel_axis: int | None = None) -> Callable:
    """Return a rule that is limited to calls whose only map in parts is the first argument.

    Args:
        rule: The rule without this check.
        channel_axis: The axis at which the map must have its channels; None for any.
    """

    @wraps(rule)
    def checked(operator, input, *args, **kwargs):
        if not isinstance(input, SplitMap) or channel_axis not in (None, input.channel_axis):
            return NotImplemented
        if any(isinstance(value, SplitMap) for value in (*args, *kwargs.values())):
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
