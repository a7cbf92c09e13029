"""What separate teachers sent with the rows, beside the policy: hidden states, most likely tokens, shared chunks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlkd.errors import TeacherError
from rlkd.learner.comparison import BoundaryMass, Comparison, Head, HiddenComparison, Measure, TopKComparison
from rlkd.learner.packing import MicroBatch
from rlkd.records import Chunks, HiddenStates, TopK, TrainRow


def sent_comparisons(batch: MicroBatch, measure: Measure, heads: dict[str, Head]) -> list[Comparison]:
    """Comparisons with what separate teachers sent with the rows.

    Raises: TeacherError when a row's view has another length than its completion, or no head is at hand for it.
    """
    device = batch.targets.device
    found: list[Comparison] = []
    starts = [0]
    for row in batch.rows:
        starts.append(starts[-1] + len(row.completion_ids))
    by_teacher: dict[str, list[int]] = {}
    for index, row in enumerate(batch.rows):
        view = row.teacher_view
        if isinstance(view, HiddenStates):
            _check_length(len(view.values), row)
            by_teacher.setdefault(view.teacher, []).append(index)
        elif isinstance(view, TopK):
            _check_length(len(view.ids), row)
            by_teacher.setdefault("", []).append(index)
    for teacher, rows in by_teacher.items():
        positions = torch.cat([torch.arange(starts[i], starts[i + 1], device=device) for i in rows])
        views = [batch.rows[i].teacher_view for i in rows]
        if teacher == "":
            ids = torch.tensor([ids for v in views for ids in v.ids], device=device)  # type: ignore[union-attr]
            lps = torch.tensor([lp for v in views for lp in v.logprobs], dtype=torch.float32, device=device)  # type: ignore[union-attr]
            found.append(TopKComparison(measure, ids, lps, positions))
        else:
            if teacher not in heads:
                raise TeacherError(f"hidden states of teacher '{teacher}' arrived, but the learner holds no head of it")
            head = heads[teacher]
            assert head.weight is not None
            hidden = torch.cat([v.values for v in views]).to(device, head.weight.dtype)  # type: ignore[union-attr]
            found.append(HiddenComparison(measure, hidden, positions, head))
    return found


def boundaries(batch: MicroBatch, starts_pretoken: Tensor) -> list[Comparison]:
    """Where chunks end inside a completion: what the policy thinks of the token after each."""
    found: list[int] = []
    start = 0
    for row in batch.rows:
        ends = [end for _, end in row.teacher_view.ranges] if isinstance(row.teacher_view, Chunks) else []
        found += [start + end for end in ends if end < len(row.completion_ids)]
        start += len(row.completion_ids)
    positions = torch.tensor(found, dtype=torch.long, device=batch.targets.device)
    return [BoundaryMass(starts_pretoken, positions)] if found else []


def _check_length(count: int, row: TrainRow) -> None:
    if count != len(row.completion_ids):
        raise TeacherError(f"a teacher scored {count} tokens of a completion of {len(row.completion_ids)}")


def read_heads(folders: dict[str, str], device: torch.device | str, dtype: torch.dtype) -> dict[str, Head]:
    """Output matrices of model folders: all that the learner holds of a teacher which sends hidden states."""
    return {name: _read_head(Path(folder), device, dtype) for name, folder in folders.items()}


def _read_head(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Head:
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - not a mapping
                if name in ("lm_head.weight", "lm_head.bias") or name.endswith("embed_tokens.weight"):
                    found[name] = stream.get_tensor(name)
    weight = found.get("lm_head.weight")
    if weight is None:  # tied
        weight = next((value for name, value in found.items() if name.endswith("embed_tokens.weight")), None)
    if weight is None:
        raise TeacherError(f"{folder} holds no output matrix (lm_head.weight, or a tied embed_tokens.weight)")
    bias = found.get("lm_head.bias")
    return Head(weight.to(device, dtype), None if bias is None else bias.to(device, dtype))
