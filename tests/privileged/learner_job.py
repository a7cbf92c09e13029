"""Learners in a process of their own: what each one's self-teacher says before and after updates. Prints JSON."""

from __future__ import annotations

import json
import random
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlkd.launch import Launch
from rlkd.learner.learner import Learner
from rlkd.learner.worker import join_process_group
from rlkd.models import materialise
from rlkd.recipe.loading import validate_recipe
from rlkd.records import TrainRow
from rlkd.trainer.assemble import plan_updates


def main(place: Path, kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    join_process_group(0, 1, address)
    torch.use_deterministic_algorithms(True, warn_only=True)  # as in a run
    return {name: _follow(place / str(number), *kind) for number, (name, kind) in enumerate(kinds.items())}


def _follow(place: Path, teacher: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "tiny",
        "policy": {"kind": "scratch", "hidden_size": 32, "layers": 2, "heads": 2, "context_length": 128},
        "teacher": teacher,
        "privileged": {"field": "solution", "max_tokens": 20, "max_prompt_tokens": 40},
        "data": {"train": {"kind": "reasoning_gym", "task": "chain_sum", "size": 8, "seed": 1}},
        "objective": {"kind": "opsd", "clip": None},
        "learner": settings,
        "optim": {"lr": 1e-3},
        "rollout": {"prompts_per_step": 3, "group_size": 2, "max_prompt_tokens": 20, "max_new_tokens": 20},
        "stages": [{"kind": "rl", "steps": 4}],
    }
    recipe = Launch().resolve(validate_recipe(raw, where="tiny"))
    folder = materialise(recipe.policy, place / "policy", where="policy", seed=0, texts=lambda: ())
    torch.manual_seed(0)
    learner = Learner(recipe, folder, rank=0, world_size=1, total_updates=4)
    rows = _rows()
    equal = [replace(row, teacher_prompt_ids=row.prompt_ids) for row in rows]
    found: dict[str, Any] = {"equal_divergence": learner.score_other(equal, exact="forward_kl")}
    found["policy"] = [learner.score(rows)]
    found["teacher"] = [learner.score_other(rows)]
    found["loss"] = []
    for step in range(2):
        counts, _ = learner.train_step(plan_updates(recipe, rows, ranks=1)[0], step=step)
        found["loss"].append(counts["loss"][0])
        found["policy"].append(learner.score(rows))
        found["teacher"].append(learner.score_other(rows))
    learner.save(place / "saved")
    learner.train_step(plan_updates(recipe, rows, ranks=1)[0], step=2)
    learner.load(place / "saved", updates=2)
    found["teacher"].append(learner.score_other(rows))
    return found


def _rows() -> list[TrainRow]:
    draw = random.Random(0)
    rows: list[TrainRow] = []
    for group in range(3):
        prompt, other = (tuple(draw.randrange(6, 90) for _ in range(n)) for n in (5, 30))
        for _ in range(2):
            done = tuple(draw.randrange(6, 90) for _ in range(draw.randrange(2, 12)))
            blank = (-4.0,) * len(done)
            rows.append(TrainRow(group, prompt, done, blank, 0.0, len(rows), teacher_prompt_ids=other))
    return rows


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
