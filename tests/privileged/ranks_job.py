"""One learner rank of several in a process of its own: gradients of objectives whose teacher runs through the policy.

The weights are larger than what ZeRO-3 keeps whole on every rank, so that each pass really is a collective, and the
taught rows fall on the ranks unevenly.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlkd.launch import Launch
from rlkd.learner.learner import Learner
from rlkd.learner.packing import pack, plan_micro_batches
from rlkd.learner.teaching import other_context, parts
from rlkd.learner.worker import join_process_group
from rlkd.models import materialise
from rlkd.recipe import Recipe
from rlkd.recipe.loading import validate_recipe
from rlkd.records import TrainRow
from rlkd.trainer.assemble import plan_updates

KEPT_WHOLE = 100_000  # DeepSpeed's stage3_param_persistence_threshold
PROBLEMS, TAUGHT = 7, 3
# packed tokens of a pass: some micro-batches need several passes of the teacher, others have nobody to teach, and some
# ranks have no more micro-batches while others go on
FEW, MORE = {"tokens_per_micro_batch": 30}, {"tokens_per_micro_batch": 40}
CASES: dict[str, dict[str, Any]] = {
    "live": {
        "teacher": {"kind": "self", "weights": "live"},
        "objective": {"kind": "opsd", "clip": None},
        "learner": MORE,
    },
    "adapters off": {
        "teacher": {"kind": "self", "weights": "frozen"},
        "objective": {"kind": "opsd", "clip": None},
        "learner": {"lora": {"rank": 4}, **FEW},
    },
    "sampled tokens": {
        "teacher": {"kind": "self", "weights": "live"},
        "objective": {"kind": "opsd", "divergence": "sampled"},
        "learner": FEW,
    },
    "pi_distill": {
        "teacher": None,
        "objective": {"kind": "pi_distill", "kl_in": "loss", "teacher_share": {"kind": "constant", "value": 0.4}},
        "learner": MORE,
    },
}


def recipe_of(case: str, *, zero: int) -> Recipe:
    raw: dict[str, Any] = {
        "name": "tiny",
        "policy": {
            "kind": "scratch", "hidden_size": 320, "layers": 2, "heads": 4, "context_length": 128,
            "tokenizer": {"kind": "char", "alphabet": "".join(map(chr, range(32, 432)))},
        },
        "privileged": {"field": "solution", "max_tokens": 20, "max_prompt_tokens": 60},
        "data": {"train": {"kind": "reasoning_gym", "task": "chain_sum", "size": 8, "seed": 1}},
        "rollout": {"prompts_per_step": PROBLEMS, "group_size": 3, "max_prompt_tokens": 20, "max_new_tokens": 20},
        "stages": [{"kind": "rl", "steps": 4}],
    }  # fmt: skip
    raw |= {key: value for key, value in CASES[case].items() if value is not None}
    raw["learner"] = {"zero_stage": zero, **raw["learner"]}
    return Launch().resolve(validate_recipe(raw, where="tiny"))


def rows_of(case: str) -> list[TrainRow]:
    """Problems of three rows each; the first few are taught, in a context too long for one pass."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(6, 90) for _ in range(draw.randrange(low, high)))

    rows: list[TrainRow] = []
    for group in range(PROBLEMS):
        prompt, other = tokens(2, 8), tokens(40, 50)
        for _ in range(3):
            done = tokens(1, 6 if group < TAUGHT else 12)
            row = TrainRow(group, prompt, done, (-5.0,) * len(done), draw.gauss(0, 1), len(rows))
            rows.append(replace(row, teacher_prompt_ids=other) if group < TAUGHT else replace(row, distilled=False))
    if case != "pi_distill":
        return rows
    views = [
        row if row.teacher_prompt_ids is None
        else replace(row, prompt_ids=row.teacher_prompt_ids, teacher_prompt_ids=row.prompt_ids)
        for row in rows
    ]  # fmt: skip
    bare = [replace(row, term="bare") for row in rows if row.teacher_prompt_ids is not None]
    return views + [replace(row, index=len(rows) + at) for at, row in enumerate(bare)]


def taught_passes(rows: Sequence[TrainRow], token_budget: int) -> list[int]:
    """The teacher's passes for each micro-batch."""
    found = []
    for groups in plan_micro_batches(rows, token_budget=token_budget):
        other, _ = other_context(pack(groups))
        found.append(0 if other is None else len(list(parts(other, token_budget))))
    return found


def main(place: Path, rank: int, world: int, port: int, zero: int) -> None:
    where = place / f"policy-{world}-{rank}"
    folder = materialise(recipe_of("live", zero=zero).policy, where, where="policy", seed=0, texts=lambda: ())
    join_process_group(rank, world, ("127.0.0.1", port))
    found: dict[str, Any] = {}
    for case in CASES:
        recipe = recipe_of(case, zero=zero)
        torch.manual_seed(0)
        learner = Learner(recipe, folder, rank=rank, world_size=world, total_updates=4)
        sizes = [getattr(p, "ds_numel", p.numel()) for p in learner.policy.module.model.parameters()]
        assert max(sizes) > KEPT_WHOLE
        shares = plan_updates(recipe, rows_of(case), ranks=world)
        found[case] = {
            "gradients": learner.gradients(shares[rank][0], step=0),
            "taught": [taught_passes(share[0].rows, recipe.learner.tokens_per_micro_batch) for share in shares],
        }
        print(f"rank {rank}: {case}", flush=True)
    if rank == 0:
        torch.save(found, place / f"ranks-{world}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
