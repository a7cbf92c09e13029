"""Time and peak memory of whole-vocabulary divergences, forward and backward: chunked against plain, and against TRL's.

    python tests/bench/chunked_divergence.py [--kinds forward_kl jensen_shannon] [--tokens 1024 4096] [--repeats 2]

Each measurement is a process of its own: peak is the largest resident size during one step above what it was before.
On a busy machine compare processor time with one thread (OMP_NUM_THREADS=1), which others' work does not change.
A measurement that would need more than the memory limit is skipped, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

SIZES = {49_152: 576, 151_936: 896}  # vocabulary -> width: SmolLM2-135M, Qwen2.5-0.5B
GIGA = 2**30
BETA = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}
VARIANTS = ("chunked", "plain", "trl chunked", "trl plain")
PLAIN_COPIES = 16  # [T, V] float32 tensors that a plain step holds at its peak, at most; decides what is tried at all


@dataclass(frozen=True)
class Case:
    """One measurement."""

    variant: str
    kind: str
    vocabulary: int
    tokens: int
    dtype: str
    repeats: int


def build(case: Case) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """A function that computes the mean divergence, and the tensors that are trained."""
    generator = torch.Generator().manual_seed(0)
    width = SIZES[case.vocabulary]
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden, teacher_hidden = draw(case.tokens, width), draw(case.tokens, width)
    head, teacher_head = (draw(case.vocabulary, width).div_(width**0.5) for _ in range(2))
    trained = [hidden.requires_grad_(), head.requires_grad_()]
    beta = BETA[case.kind]
    setting: dict[str, Any] = {"kind": case.kind, "mixture_weight": beta if case.kind == "jensen_shannon" else None}
    kind, weight = setting["kind"], setting["mixture_weight"]
    setting |= {"hidden": hidden, "head_weight": head}
    setting |= {"teacher_hidden": teacher_hidden, "teacher_head_weight": teacher_head}
    if case.variant == "chunked":
        from rlkd.divergences import chunked_divergence

        alike = torch.ones(case.tokens, dtype=torch.bool)  # as in training
        return lambda: chunked_divergence(**setting, weighed_alike=alike).per_token.mean(), trained
    if case.variant == "plain":
        from rlkd.divergences import divergence

        def plain() -> torch.Tensor:
            with torch.no_grad():
                teacher = teacher_hidden @ teacher_head.T
            return divergence(
                kind=kind, mixture_weight=weight, policy_logits=hidden @ head.T, teacher_logits=teacher
            ).per_token.mean()

        return plain, trained
    warnings.simplefilter("ignore")
    if case.variant == "trl chunked":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        sides = (hidden, head, None, teacher_hidden, teacher_head, None)
        return lambda: ChunkedDivergenceFunction.apply(*sides, beta)[0].mean(), trained
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def trl_plain() -> torch.Tensor:
        with torch.no_grad():
            teacher = (teacher_hidden @ teacher_head.T)[None]
        loss: torch.Tensor = GKDTrainer.generalized_jsd_loss(
            (hidden @ head.T)[None].float(), teacher.float(), beta=beta, reduction="sum"
        )
        return loss / case.tokens

    return trl_plain, trained


def measure(case: Case) -> dict[str, float]:
    """Seconds of the fastest step, peak bytes of the first one, and the loss (to see that all compute the same)."""
    step, trained = build(case)
    before = psutil.Process().memory_info().rss
    times, cpu_times, loss = [], [], 0.0
    peak = 0
    for _ in range(case.repeats):
        for tensor in trained:
            tensor.grad = None
        start, cpu = time.perf_counter(), time.process_time()
        value = step()
        value.backward()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu)
        loss = value.item()
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(times), "cpu": min(cpu_times), "peak": float(peak - before), "loss": loss}


def run(case: Case, limit: float) -> dict[str, float] | str:
    """Measure in a fresh process, or say why not."""
    needed = (PLAIN_COPIES if "plain" in case.variant else 2) * case.vocabulary * case.tokens * 4 / GIGA
    room = min(limit, psutil.virtual_memory().available / GIGA * 0.9)
    if "plain" in case.variant and needed > room:
        return f"skipped: needs about {needed:.0f} GiB, {room:.0f} GiB allowed"
    child = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(asdict(case))], capture_output=True, text=True, check=False
    )
    if child.returncode:
        return f"failed: {child.stderr.strip().splitlines()[-1] if child.stderr.strip() else child.returncode}"
    measured: dict[str, float] = json.loads(child.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    """Print one line a measurement, with its ratio to the first one of the same case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", default=["forward_kl", "jensen_shannon"], choices=sorted(BETA))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=sorted(SIZES), choices=sorted(SIZES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=20.0, help="GiB that one measurement may need")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)))))
        return
    print(f"{options.dtype}, {torch.get_num_threads()} threads; ratios are to the first line")
    for vocabulary in options.vocabularies:
        for tokens in options.tokens:
            for kind in options.kinds:
                print(f"\nV={vocabulary:,} T={tokens:,} D={SIZES[vocabulary]} {kind}", flush=True)
                base: dict[str, float] | None = None
                for variant in options.variants:
                    result = run(Case(variant, kind, vocabulary, tokens, options.dtype, options.repeats), options.limit)
                    if isinstance(result, str):
                        print(f"  {variant:<12} {result}", flush=True)
                        continue
                    base = base or result
                    print(
                        f"  {variant:<12} {result['seconds']:8.2f} s (x{result['seconds'] / base['seconds']:.2f})"
                        f" cpu {result['cpu']:8.2f} s (x{result['cpu'] / base['cpu']:.2f})"
                        f" {result['peak'] / GIGA:7.2f} GiB (x{result['peak'] / base['peak']:.2f})"
                        f"  loss {result['loss']:.6f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
