"""Attention over packed groups: every completion sees its own group's prompt and its own earlier tokens.

Registered with transformers under ``rlkd_packed``, so that any model which takes its attention from that registry runs
on packed tokens unchanged. Everything but attention works on packed tokens and knows no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from rlkd.errors import NumericsError
from rlkd.learner.layout import Layout

NAME = "rlkd_packed"


def register() -> str:
    """Make the implementation known to transformers (idempotent) and return its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says who sees whom; a [T, T] mask over packed tokens must not exist."""
    return


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads (grouped queries).
        layout: covers all T tokens.

    Returns: [1, T, H, D] and None, as transformers expects.
    Raises: NumericsError for a sliding window shorter than the longest row.
    """
    del attention_mask
    window = getattr(module, "sliding_window", None)
    if window and layout.longest > window:
        raise NumericsError(f"rows of {layout.longest} tokens exceed the model's sliding window of {window}")
    heads = query.shape[1]
    packed = [_rows(tensor) for tensor in (query, key, value)]
    pieces = []
    for bucket in layout.buckets:
        q = _take(packed[0], bucket.query, heads)
        k, v = (_take(tensor, bucket.key, key.shape[1]) for tensor in packed[1:])
        if heads != key.shape[1]:
            k, v = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (k, v))
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bucket.mask,
            is_causal=bucket.mask is None,
            scale=scaling,
            dropout_p=dropout if module.training else 0.0,
        )
        pieces.append(_rows(out.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return embedding(layout.gather, joined).unflatten(1, (heads, -1))[None], None


def _rows(tensor: Tensor) -> Tensor:
    """[1, H, T, D] -> [T, H * D]."""
    return tensor[0].transpose(0, 1).flatten(1)


def _take(packed: Tensor, index: Tensor, heads: int) -> Tensor:
    """[T, H * D] and [R, W] -> [R, H, W, D]. As an embedding look-up: its backward is one fast, ordered pass."""
    taken: Tensor = embedding(index, packed).unflatten(2, (heads, -1))
    return taken.transpose(1, 2)
