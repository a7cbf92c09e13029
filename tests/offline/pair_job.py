"""The pair learner in a process of its own, for every objective: gradients beside the plain pair formula's. JSON."""

from __future__ import annotations

import json
import random
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from rlkd.launch import Launch
from rlkd.learner.loss import Denominators
from rlkd.learner.packing import split_groups
from rlkd.learner.pairs import PairLearner
from rlkd.learner.worker import join_process_group
from rlkd.models import materialise
from rlkd.recipe import Recipe
from rlkd.recipe.loading import validate_recipe
from rlkd.recipe.offline import reads_wrong
from rlkd.recipe.schema import OfflineStage
from rlkd.records import TrainRow
from rlkd.trainer.assemble import share_update
from rlkd.trainer.offline import pair_rows
from rlkd.trainer.pair_file import Pair

OBJECTIVES: dict[str, dict[str, Any]] = {
    "redi": {"kind": "redi", "rejected_weight": 0.8},
    "symmetric": {"kind": "symmetric"},
    "sft": {"kind": "sft"},
    "dpo": {"kind": "dpo", "inverse_temperature": 0.3},
    "simpo": {"kind": "simpo", "inverse_temperature": 2.0, "margin": 0.5},
}
BUDGETS = (1, 10**6)  # every row in a micro-batch of its own, so that pairs are cut; all in one


def _recipe(budget: int, objective: dict[str, Any]) -> Recipe:
    raw: dict[str, Any] = {
        "name": "tiny",
        "policy": {"kind": "scratch", "hidden_size": 32, "layers": 2, "heads": 2, "context_length": 128},
        "data": {"train": {"kind": "reasoning_gym", "task": "chain_sum", "size": 8, "seed": 1}},
        "learner": {"tokens_per_micro_batch": budget},
        "rollout": {"temperature": 0.7},  # of RL stages: given traces are scored at 1
        "stages": [
            {
                "kind": "offline",
                "pairs": {"kind": "file", "path": "x"},
                "objective": objective,
                "steps": 4,
                "max_prompt_tokens": 60,
                "max_response_tokens": 60,
                "optim": {"lr": 0.01},
            }
        ],
    }
    return Launch().resolve(validate_recipe(raw, where="tiny"))


def _pairs() -> list[Pair]:
    draw = random.Random(0)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(6, 90) for _ in range(draw.randrange(least, most)))

    return [Pair(str(number), "", ids(3, 9), ids(1, 14), ids(1, 14)) for number in range(4)]


def _plain(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """[C] log-probs of one trace through transformers' own attention."""
    tokens = torch.tensor([prompt + completion])
    logprobs = model(input_ids=tokens).logits[0].log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])[:, 0]  # type: ignore[no-any-return]


def _pair_form(objective: dict[str, Any], policy: Any, reference: Any, pairs: list[Pair]) -> Tensor:
    """The published losses, a pair at a time."""
    losses = []
    for pair in pairs:
        right, wrong = (_plain(policy, pair.prompt_ids, ids) for ids in (pair.right_ids, pair.wrong_ids))
        if objective["kind"] == "dpo":
            with torch.no_grad():
                fixed = [_plain(reference, pair.prompt_ids, ids).sum() for ids in (pair.right_ids, pair.wrong_ids)]
            margin = (right.sum() - fixed[0]) - (wrong.sum() - fixed[1])
            losses.append(-logsigmoid(objective["inverse_temperature"] * margin))
        elif objective["kind"] == "simpo":
            margin = objective["inverse_temperature"] * (right.mean() - wrong.mean()) - objective["margin"]
            losses.append(-logsigmoid(margin))
        else:
            alpha = {"redi": 0.8, "symmetric": 1.0, "sft": 0.0}[objective["kind"]]
            losses.append(-right.mean() + alpha * wrong.mean())
    return torch.stack(losses).mean()


def _compare(folder: Path, objective: dict[str, Any], budget: int, pairs: list[Pair]) -> dict[str, float]:
    """After one update, so that DPO's policy and reference differ."""
    recipe = _recipe(budget, objective)
    stage = recipe.stages[0]
    assert isinstance(stage, OfflineStage)
    learner = PairLearner(recipe, folder, stage=stage, rank=0, world_size=1, total_updates=4)
    rows: list[TrainRow] = pair_rows(pairs, wrong=reads_wrong(stage.objective))
    total = Denominators(policy=float(len(pairs)), distill=0.0)
    update = share_update(split_groups(rows), total, ranks=1, token_budget=budget)[0]
    learner.train_step([update], step=0)
    learner.save_policy(folder.parent / f"now-{objective['kind']}-{budget}")
    model = AutoModelForCausalLM.from_pretrained(folder.parent / f"now-{objective['kind']}-{budget}")
    reference = AutoModelForCausalLM.from_pretrained(folder)
    loss = _pair_form(objective, model, reference, pairs)
    loss.backward()
    found = learner.gradients(update, step=1)
    expected = {name: p.grad for name, p in model.named_parameters()}
    counts, _ = learner.train_step([update], step=1)
    right = [float(_plain(model, pair.prompt_ids, pair.right_ids).mean()) for pair in pairs]
    return {
        "gradient": max(float((found[name] - grad).abs().max()) for name, grad in expected.items()),
        "size": max(float(grad.abs().max()) for grad in expected.values()),
        "loss": abs(counts["loss"][0] - float(loss)),
        "right": abs(counts["right_logprob"][0] / counts["right_logprob"][1] - sum(right) / len(right)),
        "moved": max(
            float((p - q).abs().max()) for p, q in zip(model.parameters(), reference.parameters(), strict=True)
        ),
        "passes": float(update.micro_batches),
    }


def main(place: Path) -> dict[str, dict[str, float]]:
    folder = materialise(_recipe(1, OBJECTIVES["redi"]).policy, place / "p", where="policy", seed=0, texts=lambda: ())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    join_process_group(0, 1, address)
    return {
        f"{name} {budget}": _compare(folder, objective, budget, _pairs())
        for name, objective in OBJECTIVES.items()
        for budget in BUDGETS
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(Path(sys.argv[1]))))
