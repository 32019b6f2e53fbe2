"""Multi-head attention with a linear layer for each of query, key and value."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SplitAttention(nn.Module):
    """An ``nn.MultiheadAttention`` as four linear layers, equal up to rounding.

    The original keeps query, key and value in one matrix and never calls its output layer, so that an adapter of a
    linear layer has no effect there.

    Args:
        whole: With keys and values as wide as queries, and without ``bias_k`` and ``add_zero_attn``.
    """

    def __init__(self, whole: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.batch_first = whole.num_heads, whole.batch_first
        weights = whole.in_proj_weight.detach().chunk(3)
        biases = [None] * 3 if whole.in_proj_bias is None else whole.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        bias = whole.out_proj.bias
        self.out_proj = _linear(whole.out_proj.weight.detach(), None if bias is None else bias.detach())

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module can be split."""
        return (
            type(module) is nn.MultiheadAttention
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
            and module.dropout == 0
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Return what the original returns, without the weights: (outputs, None)."""
        if key_padding_mask is not None:
            raise ValueError("key_padding_mask is not taken: images have no padding")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        heads = [
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (outputs if self.batch_first else outputs.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(
        weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype
    )
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer.requires_grad_(False)
