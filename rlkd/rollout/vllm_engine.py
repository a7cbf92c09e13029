"""vLLM inside one worker: sampling, scoring and in-place weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.errors import RolloutError
from rlkd.records import TopK

# Prompt log-probs materialise [tokens, V] in float32, which vLLM does not count when it plans memory.
SCORE_BYTES = 512 * 2**20
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Sample:
    """One completion as the engine returned it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


@dataclass(frozen=True)
class Request:
    """``n`` completions of one prompt; sample i uses ``seed + i``."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True)
class EngineSettings:
    """What an engine needs to start, already resolved against the hardware."""

    folder: str
    dtype: str
    max_model_len: int
    max_concurrent: int
    on_gpu: bool
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.85
    kv_cache_gib: int = 1
    enforce_eager: bool = False
    colocated: bool = False
    scores: bool = False  # a teacher: prefix caching off, see below
    top_k: int = 0  # most log-probs a prompt token may be asked for
    transport: str = "object_store"  # how the learner's weights come: see cluster.weights


class VllmEngine:
    """An in-process engine: one Ray actor, one scheduler, no second control plane."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if not settings.on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = (
                "nobind"  # engines take turns on the cores; pinning makes them queue
            )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
            "0"  # else its scheduler's process, whose channel takes no tensors
        )
        from vllm import LLM

        self.llm = LLM(**_llm_arguments(settings))
        self.vocab_size = int(self.llm.llm_engine.model_config.get_vocab_size())

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        top_p: float = 1.0,
    ) -> list[list[Sample]]:
        """Sample. Log-probs are nats at ``temperature``, of the sampled tokens, within the ``top_p`` share.

        Raises: RolloutError when a completion comes back without a usable finish reason or with lengths that differ.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=request.n,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=request.seed if temperature > 0 else None,
                logprobs=0,
                stop_token_ids=list(stop_ids),
                detokenize=False,
                skip_special_tokens=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        return [[_sample(completion) for completion in output.outputs] for output in outputs]

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of each completion given its prompt.

        Args:
            sequences: (prompt_ids, completion_ids) pairs.
        """
        return [
            [entry[token].logprob for entry, token in zip(entries, completion, strict=True)]
            for completion, entries in self._prompt_logprobs(sequences, 0)
        ]

    def top_k(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, k: int) -> list[TopK]:
        """The k most likely entries before each completion token (nats, temperature 1)."""
        views = []
        for _, entries in self._prompt_logprobs(sequences, k):
            # by rank: the completion's own token stands in an entry too, whatever its rank
            best = [sorted(entry.items(), key=lambda item: item[1].rank)[:k] for entry in entries]
            ids = tuple(tuple(token for token, _ in line) for line in best)
            views.append(TopK(ids, tuple(tuple(value.logprob for _, value in line) for line in best)))
        return views

    def _prompt_logprobs(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], count: int
    ) -> Iterator[tuple[Sequence[int], Any]]:
        """(completion_ids, vLLM's entry per completion token) of each pair, in order."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=count, temperature=1.0, detokenize=False)
        for batch in self._score_batches(sequences):
            prompts = [{"prompt_token_ids": [*prompt, *completion]} for prompt, completion in batch]
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
            for (prompt, completion), output in zip(batch, outputs, strict=True):
                yield completion, output.prompt_logprobs[len(prompt) :]

    def _score_batches(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[list[tuple[Sequence[int], Sequence[int]]]]:
        budget = max(self.settings.max_model_len, SCORE_BYTES // (4 * self.vocab_size))
        batches: list[list[tuple[Sequence[int], Sequence[int]]]] = []
        used = budget
        for pair in sequences:
            cost = len(pair[0]) + len(pair[1])
            if used + cost > budget:
                batches.append([])
                used = 0
            batches[-1].append(pair)
            used += cost
        return batches

    def load_weights(self, named: Sequence[tuple[str, Any]]) -> None:
        """Swap all weights in place and forget every cached key and value of the old ones."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": with_head(named)})
        self._forget()

    def weight_sync(self, call: str, request: dict[str, Any] | None = None) -> None:
        """One call of vLLM's weight-transfer protocol."""
        getattr(self.llm, call)(*(() if request is None else (request,)))

    def received_checksums(self) -> list[int]:
        """Of the weights that the protocol brought, one a device; forgets what the old ones cached."""
        self._forget()
        return list(self.llm.collective_rpc("received_checksum"))

    def _forget(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RolloutError("the engine did not reset its prefix cache after new weights; requests still running?")

    def sleep(self) -> None:
        """Give the device to the learner (colocated placement on a GPU)."""
        self.llm.sleep(level=1)

    def wake(self) -> None:
        """Take the device back."""
        self.llm.wake_up()


def with_head(named: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A tied head is a packed copy on CPU: it keeps the old weights unless it comes by its own name."""
    if any(name == HEAD for name, _ in named):
        return list(named)
    return [*named, *((HEAD, tensor) for name, tensor in named if name.endswith("embed_tokens.weight"))]


def _llm_arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": settings.folder,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_concurrent,
        "tensor_parallel_size": settings.tensor_parallel,
        # Prompt log-probs of cached positions would be those of another request (vllm#42245): off for a teacher.
        "enable_prefix_caching": not settings.scores,
        "logprobs_mode": "processed_logprobs",  # after temperature: the distribution that was sampled
        "generation_config": "vllm",  # a model's own generation_config.json must not change sampling behind our back
        "enforce_eager": settings.enforce_eager or not settings.on_gpu,
        "disable_log_stats": True,
        "max_logprobs": max(20, settings.top_k),
        "seed": 0,
    }
    if settings.transport != "object_store":
        arguments["weight_transfer_config"] = {"backend": f"rlkd_{settings.transport}"}
        arguments["worker_extension_cls"] = "rlkd.rollout.receiving.ReceivedWeights"
    if settings.on_gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        arguments["enable_sleep_mode"] = settings.colocated
    else:
        # A per-request seed on CPU fails when a prompt is prefilled in chunks.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(settings.max_model_len, 8192)
    return arguments


def _sample(completion: Any) -> Sample:
    tokens = tuple(completion.token_ids)
    logprobs = tuple(entry[token].logprob for entry, token in zip(completion.logprobs, tokens, strict=True))
    if completion.finish_reason not in ("stop", "length"):
        raise RolloutError(f"a completion ended with reason {completion.finish_reason!r}; expected stop or length")
    return Sample(tokens, logprobs, completion.finish_reason)
