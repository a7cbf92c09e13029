"""Attention over packed groups: every completion sees its own group's prompt and its own earlier tokens.

Registered with transformers under ``rlkd_packed``, so that any model which takes its attention from that registry runs
on packed tokens unchanged. Everything but attention works on packed tokens and knows no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rlkd.learner.packing import Span

NAME = "rlkd_packed"


def register() -> str:
    """Make the implementation known to transformers (idempotent) and return its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def _no_mask(*_: Any, **__: Any) -> None:
    """The spans say who sees whom; a [T, T] mask over packed tokens must not exist."""
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
    spans: Sequence[Span],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads (grouped queries).
        spans: the packed layout; covers all T tokens.

    Returns: [1, T, H, D] and None, as transformers expects.
    """
    del attention_mask
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    window = getattr(module, "sliding_window", None)
    options = {"scale": scaling, "dropout_p": dropout if module.training else 0.0}
    pieces: dict[int, Tensor] = {}
    single = [index for index, span in enumerate(spans) if len(span.lengths) == 1 and not window]
    for batch in _by_length(single, spans):
        pieces |= _whole_rows(query, key, value, [(i, spans[i]) for i in batch], options)
    for index, span in enumerate(spans):
        if index not in pieces:
            pieces[index] = _shared_prompt(query, key, value, span, window, options)
    return torch.cat([pieces[index] for index in range(len(spans))], dim=1), None


def _by_length(indices: list[int], spans: Sequence[Span]) -> list[list[int]]:
    """Batches of rows whose lengths differ by less than a quarter, so that padding inside attention stays small."""
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda i: -spans[i].total):
        if batches and spans[index].total >= 0.75 * spans[batches[-1][0]].total:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _whole_rows(
    query: Tensor, key: Tensor, value: Tensor, batch: list[tuple[int, Span]], options: dict[str, Any]
) -> dict[int, Tensor]:
    """One causal call over rows that share no prompt; padding sits at the end, where causality hides it."""
    width = max(span.total for _, span in batch)

    def rows(packed: Tensor) -> Tensor:
        cut = [packed[0, :, s.prompt_start : s.prompt_start + s.total] for _, s in batch]
        return torch.stack([pad(piece, (0, 0, 0, width - piece.shape[1])) for piece in cut])

    out = scaled_dot_product_attention(rows(query), rows(key), rows(value), is_causal=True, **options)
    return {index: out[b, :, : span.total].transpose(0, 1)[None] for b, (index, span) in enumerate(batch)}


def _shared_prompt(
    query: Tensor, key: Tensor, value: Tensor, span: Span, window: int | None, options: dict[str, Any]
) -> Tensor:
    """Prompt once, causal; completions against prompt + themselves, padded at the end only."""
    first, middle, last = span.prompt_start, span.completion_start, span.prompt_start + span.total
    prompt_mask = _mask(0, span.prompt_length, window, query.device) if window else None
    prompt = scaled_dot_product_attention(
        query[:, :, first:middle],
        key[:, :, first:middle],
        value[:, :, first:middle],
        attn_mask=prompt_mask,
        is_causal=prompt_mask is None,
        **options,
    ).transpose(1, 2)
    width = max(span.lengths)
    if width == 0:
        return prompt
    own = [_pad_rows(packed[0, :, middle:last], span.lengths, width) for packed in (query, key, value)]
    shared = [packed[:, :, first:middle].expand(len(span.lengths), -1, -1, -1) for packed in (key, value)]
    out = scaled_dot_product_attention(
        own[0],
        torch.cat([shared[0], own[1]], dim=2),
        torch.cat([shared[1], own[2]], dim=2),
        attn_mask=_mask(span.prompt_length, width, window, query.device),
        **options,
    ).transpose(1, 2)
    if min(span.lengths) == width:
        completions = out.flatten(0, 1)
    else:
        completions = torch.cat([out[row, :length] for row, length in enumerate(span.lengths)])
    return torch.cat([prompt, completions[None]], dim=1)


def _pad_rows(packed: Tensor, lengths: Sequence[int], width: int) -> Tensor:
    """[H, sum(lengths), D] -> [rows, H, width, D]."""
    if min(lengths) == width:
        return packed.unflatten(1, (len(lengths), width)).transpose(0, 1)
    pieces = packed.split(list(lengths), dim=1)
    return torch.stack([pad(piece, (0, 0, 0, width - piece.shape[1])) for piece in pieces])


def _mask(prefix: int, width: int, window: int | None, device: torch.device) -> Tensor:
    """[width, prefix + width], true where a query may look: everything earlier, within the sliding window if any."""
    queries = torch.arange(prefix, prefix + width, device=device)[:, None]
    keys = torch.arange(prefix + width, device=device)[None, :]
    seen = keys <= queries
    return seen & (keys > queries - window) if window else seen
