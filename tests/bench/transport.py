"""What a teacher sends for each token, and what is lost by it: SmolLM2-135M on its own samples for GSM8K questions.

    python tests/bench/transport.py [--completions 16] [--tokens 64] [--data ../shared/data/gsm8k_train.jsonl]

The teacher is the same model with the worked solution in its prompt. ``bytes_per_token`` are those of the pickled
records that travel; ``loss`` is the mean KL(teacher || policy) that the learner computes from them, except for sampled
tokens, whose log-ratio estimates KL(policy || teacher). ``exact`` is the same divergence from whole logits in float32.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlkd.data.prompt import PromptBuilder
from rlkd.learner import attention
from rlkd.learner.comparison import Measure
from rlkd.learner.packing import pack, plan_micro_batches
from rlkd.learner.policy import PackedPolicy, load_causal_lm
from rlkd.learner.teacher_views import read_heads, sent_comparisons
from rlkd.models import load_tokenizer, materialise
from rlkd.recipe.data import DataSpec
from rlkd.recipe.models import PackagedModel
from rlkd.recipe.privileged import TEACHER_TURN
from rlkd.records import Example, HiddenStates, TrainRow
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.teacher.transformers_teacher import TransformersTeacher

TOP_K = (1, 16, 64, 256)
BUDGET = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    data = Path(__file__).parents[2] / ".." / "shared" / "data" / "gsm8k_train.jsonl"
    parser.add_argument("--data", type=Path, default=data)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = materialise(PackagedModel(), Path(place) / "model", where="policy", seed=0, texts=lambda: ())
        print(json.dumps(measure(folder, _rows(folder, args)), indent=1))


def _rows(folder: Path, args: argparse.Namespace) -> list[TrainRow]:
    """Samples of the policy, with the teacher's prompt beside its own."""
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(folder, dtype=torch.float32)
    model.set_attn_implementation("sdpa")  # packed attention does not generate
    asked = PromptBuilder(tokenizer, DataSpec.model_validate({"train": {"kind": "file", "path": str(args.data)}}))
    rows = []
    with args.data.open(encoding="utf-8") as stream:
        for group, (line, _) in enumerate(zip(stream, range(args.completions), strict=False)):
            row = json.loads(line)
            prompt = asked.prompt(Example(str(group), row["question"], "")).token_ids
            shown = TEACHER_TURN.replace("{prompt}", row["question"]).replace("{privileged}", row["answer"])
            other = asked.prompt(Example(str(group), shown, "")).token_ids
            ids = torch.tensor([prompt])
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.tokens, do_sample=True, top_k=0
            )[0, len(prompt) :].tolist()
            blank = (0.0,) * len(written)
            rows.append(TrainRow(group, prompt, tuple(written), blank, 0.0, group, teacher_prompt_ids=other))
    return rows


@torch.no_grad()
def measure(folder: Path, rows: Sequence[TrainRow]) -> dict[str, Any]:
    """Bytes and loss of each transport."""
    attention.register()
    policy = PackedPolicy(load_causal_lm(folder, dtype=torch.float32).eval())
    settings = EngineSettings(str(folder), "float32", 8192, 8, on_gpu=False)
    teacher = TransformersTeacher(settings, temperature=1.0, tokens_per_batch=BUDGET)
    pairs = [(row.teacher_prompt_ids or (), row.completion_ids) for row in rows]
    heads = read_heads({"teacher": str(folder)}, "cpu", torch.float32)
    tokens = sum(len(row.completion_ids) for row in rows)
    hidden = teacher.hidden(pairs)
    forward, reverse = _exact(policy, rows, hidden, heads["teacher"].weight)
    vocabulary = policy.model.config.vocab_size

    def figures(views: Sequence[Any], loss: float, exact: float) -> dict[str, float]:
        size = len(pickle.dumps(list(views), protocol=5)) / tokens
        return {"bytes_per_token": size, "loss": loss, "exact": exact, "difference": loss - exact}

    found: dict[str, Any] = {"tokens": tokens, "vocabulary": vocabulary, "hidden_size": hidden[0].shape[1]}
    found["logits, float32"] = {"bytes_per_token": 4.0 * vocabulary, "loss": forward, "exact": forward}
    for name, dtype in (("hidden states, float32", torch.float32), ("hidden states, bfloat16", torch.bfloat16)):
        views = [HiddenStates(values.to(dtype)) for values in hidden]
        found[name] = figures([view.values for view in views], _loss(policy, rows, views, heads), forward)
    for k in TOP_K:
        sent = teacher.top_k(pairs, k=k)
        found[f"top {k}"] = figures(sent, _loss(policy, rows, sent, heads), forward)
    scores = teacher.score(pairs)
    mine = [value for batch, _ in _batches(rows) for value in policy(batch).logprobs.tolist()]
    order = [index for _, indices in _batches(rows) for index in indices]
    theirs = [value for index in order for value in scores[index]]
    estimate = sum(a - b for a, b in zip(mine, theirs, strict=True)) / tokens
    found["sampled token"] = figures(scores, estimate, reverse)
    return found


def _batches(rows: Sequence[TrainRow]) -> list[tuple[Any, list[int]]]:
    batches = [pack(groups) for groups in plan_micro_batches(rows, token_budget=BUDGET)]
    return [(batch, [row.index for row in batch.rows]) for batch in batches]


def _loss(policy: PackedPolicy, rows: Sequence[TrainRow], views: Sequence[Any], heads: Any) -> float:
    """What the learner's own path makes of the records."""
    sent = [replace(row, teacher_view=view) for row, view in zip(rows, views, strict=True)]
    total = 0.0
    for batch, _ in _batches(sent):
        against = sent_comparisons(batch, Measure("forward_kl"), heads)
        total += float(policy(batch, against=against).divergence.double().sum())
    return total / sum(len(row.completion_ids) for row in rows)


def _exact(policy: PackedPolicy, rows: Sequence[TrainRow], hidden: Sequence[Any], head: Any) -> tuple[float, float]:
    """(KL(teacher || policy), KL(policy || teacher)) from whole logits, without the library's divergences."""
    forward = reverse = 0.0
    for batch, indices in _batches(rows):
        mine = (policy.hidden(batch) @ head.t()).double().log_softmax(-1)
        theirs = (torch.cat([hidden[index] for index in indices]) @ head.t()).double().log_softmax(-1)
        forward += float((theirs.exp() * (theirs - mine)).sum())
        reverse += float((mine.exp() * (mine - theirs)).sum())
    tokens = sum(len(row.completion_ids) for row in rows)
    return forward / tokens, reverse / tokens


if __name__ == "__main__":
    main()
