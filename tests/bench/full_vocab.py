"""Full-vocabulary distillation step on SmolLM2-135M: this learner against TRL's DistillationTrainer, same batch.

    python tests/bench/full_vocab.py [--completions 16] [--tokens 64] [--prompt 64] [--group 1] [--steps 3]
                                     [--bf16 [--rounded]]

Each side runs in a process of its own, so that peak memory is its own; both read one batch of token ids, one student
and one (perturbed) teacher, and must agree on the loss before any number is printed. ``--group 8`` repeats each prompt
eight times: this learner computes it once, TRL eight times. Prints one JSON object with ratios.

``--bf16``: both compute in bfloat16 and keep weights, and moments, in float32, which is TRL's default as well as ours.
``--rounded`` lets TRL keep them in bfloat16: less memory and work, and updates below a 256th of a weight are lost.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--group", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounded", action="store_true", help="TRL's student and its moments in bfloat16")
    parser.add_argument("--micro", type=int, default=4, help="TRL's per-device batch")
    parser.add_argument("--side", choices=["rlkd", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        sys.stdout.flush()
        print("RESULT " + json.dumps((_rlkd if args.side == "rlkd" else _trl)(args)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _prepare(folder, args)
        found = {side: _run(side, folder) for side in ("rlkd", "trl")}
    gap = abs(found["rlkd"]["loss"] - found["trl"]["loss"])
    bound = (5e-2 if args.bf16 else 1e-3) * max(1e-3, abs(found["trl"]["loss"]))
    if gap > bound:
        sys.exit(f"the two sides compute different losses: {found}")
    ratios = {
        "speed": found["rlkd"]["tokens_per_s"] / found["trl"]["tokens_per_s"],
        "memory": found["rlkd"]["peak_gib"] / found["trl"]["peak_gib"],
    }
    print(json.dumps(found | {"ratios": ratios}, indent=1))


def _run(side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


def _prepare(folder: Path, args: argparse.Namespace) -> None:
    """Student, a teacher with noise on its weights, and the batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlkd.models import load_tokenizer, materialise
    from rlkd.recipe.models import PackagedModel

    student = materialise(PackagedModel(), folder / "student", where="policy", seed=0, texts=lambda: ())
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn_like(weight) * 0.02 * weight.std())
    teacher.save_pretrained(folder / "teacher")
    load_tokenizer(student).save_pretrained(folder / "teacher")
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(100, 49_000, (args.completions // args.group, args.prompt), generator=draw)
    completions = torch.randint(100, 49_000, (args.completions, args.tokens), generator=draw)
    batch = {"prompts": prompts.repeat_interleave(args.group, 0).tolist(), "completions": completions.tolist()}
    (folder / "batch.json").write_text(json.dumps(batch), encoding="utf-8")


def _timed(step: Any, args: argparse.Namespace, loss: float) -> dict[str, float]:
    """Median of the steps after a first one that warms up."""
    seconds = []
    for _ in range(args.steps):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    middle = sorted(seconds)[len(seconds) // 2]
    return {"loss": loss, "step_s": middle, "tokens_per_s": args.completions * args.tokens / middle, "peak_gib": peak}


def _rlkd(args: argparse.Namespace) -> dict[str, float]:
    import socket

    from transformers import AutoModelForCausalLM

    from rlkd.launch import Launch
    from rlkd.learner.worker import LearnerWorker
    from rlkd.recipe.loading import validate_recipe
    from rlkd.records import TrainRow
    from rlkd.trainer.assemble import plan_updates

    raw: dict[str, Any] = {
        "name": "bench",
        "policy": {"kind": "pretrained", "path": str(args.folder / "student")},
        "teacher": {"kind": "self", "weights": "frozen"},
        "privileged": {"field": "solution"},
        "data": {"train": {"kind": "file", "path": "none.jsonl"}},
        "objective": {"kind": "opsd", "divergence": "forward_kl", "clip": None},
        "learner": {
            "precision": "bf16" if args.bf16 else "fp32",
            "tokens_per_micro_batch": args.micro * (args.prompt + args.tokens),
        },
        "optim": {"lr": 1e-6},
        "rollout": {"prompts_per_step": args.completions // args.group, "group_size": args.group},
        "stages": [{"kind": "rl", "steps": 10}],
    }
    recipe = Launch().resolve(validate_recipe(raw, where="bench"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    worker = LearnerWorker(
        recipe.model_dump(mode="json"), str(args.folder / "student"), rank=0, world_size=1, address=address,
        total_updates=10,
    )  # fmt: skip
    teaching = worker.learner.teaching.self_teacher
    assert teaching is not None
    assert teaching.copy is not None
    teacher = AutoModelForCausalLM.from_pretrained(args.folder / "teacher", dtype=teaching.copy.model.dtype)
    teaching.copy.model.load_state_dict(teacher.state_dict())
    del teacher
    batch = json.loads((args.folder / "batch.json").read_text(encoding="utf-8"))
    rows = [
        TrainRow(i // args.group, tuple(p), tuple(c), (0.0,) * len(c), 0.0, i, teacher_prompt_ids=tuple(p))
        for i, (p, c) in enumerate(zip(batch["prompts"], batch["completions"], strict=True))
    ]
    updates = plan_updates(recipe, rows, ranks=1)[0]
    counts, _ = worker.train_step(updates, step=0)  # warms up; its loss is the one compared
    return _timed(lambda: worker.train_step(updates, step=0), args, float(counts["loss"][0]))


def _trl(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    batch = json.loads((args.folder / "batch.json").read_text(encoding="utf-8"))
    prompts, completions = torch.tensor(batch["prompts"]), torch.tensor(batch["completions"])
    dtype, teacher_dtype = ("bfloat16" if chosen else "float32" for chosen in (args.bf16 and args.rounded, args.bf16))
    config = DistillationConfig(
        output_dir=str(args.folder / "out"),
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.completions // args.micro,
        max_completion_length=args.tokens,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-6,
        bf16=args.bf16 and not args.rounded,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": dtype},
        teacher_model_init_kwargs={"dtype": teacher_dtype},
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        max_steps=1,
    )
    trainer = DistillationTrainer(
        model=str(args.folder / "student"),
        teacher_model=str(args.folder / "teacher"),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * args.completions),
        processing_class=AutoTokenizer.from_pretrained(args.folder / "student"),
    )
    trainer.create_optimizer()
    model = trainer.accelerator.prepare_model(trainer.model)  # computes in bfloat16 where the config says so
    model.train()
    total = torch.tensor(float(completions.numel()))

    def step() -> float:
        loss = 0.0
        for start in range(0, len(prompts), args.micro):
            part = slice(start, start + args.micro)
            inputs = {
                "prompt_ids": prompts[part],
                "prompt_mask": torch.ones_like(prompts[part]),
                "completion_ids": completions[part],
                "completion_mask": torch.ones_like(completions[part]),
                "num_items_in_batch": total,
            }
            found = trainer.compute_loss(model, inputs)
            found.backward()
            loss += float(found.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss

    return _timed(step, args, step())


if __name__ == "__main__":
    main()
