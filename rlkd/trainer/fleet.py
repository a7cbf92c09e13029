"""The driver's side of the engines: starting them, sharing work out, publishing weights, replacing the dead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlkd.cluster import Cluster, Pending, Worker, gather
from rlkd.errors import ClusterError, RolloutError
from rlkd.records import Prompt, Rollout, RolloutGroup
from rlkd.rollout.vllm_engine import Request, Sample

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
Turn = Literal["sleep", "wake"]
_REPLACEMENTS = 3  # of one worker, in one call, before the fault is believed


@dataclass(frozen=True)
class Published:
    """Weights on their way to the engines, and what they claim to be.

    Args:
        exported: a reference into Ray's object store, a model folder, or word of what was sent by another way.
        again: makes a reference into the object store where ``exported`` is none: a worker that joins late reads that.
    """

    exported: Any
    version: int
    again: Callable[[], Any] | None = None

    def for_newcomer(self) -> Any:
        return self.exported if self.again is None else self.again()


@dataclass
class Fleet:
    """Workers of one kind with the same weights; work is dealt out in turn and collected in order."""

    cluster: Cluster
    kind: str
    settings: Any
    target: str
    deadline_s: float
    gpus: float
    build_options: dict[str, Any] = field(default_factory=dict)
    bundles: list[tuple[Any, int]] | None = None
    workers: list[Worker] = field(default_factory=list)
    current: Published | None = None
    replaced: int = 0

    def start(self, count: int) -> list[Pending]:
        """Start ``count`` workers; wait with ``gather``."""
        return [self._start(index) for index in range(count)]

    def _start(self, index: int) -> Pending:
        bundle = self.bundles[index] if self.bundles else None
        worker = self.cluster.spawn(f"{self.kind}-{index}", gpus=self.gpus, bundle=bundle)
        if index < len(self.workers):
            self.workers[index] = worker
        else:
            self.workers.append(worker)
        return self.cluster.build(worker, self.target, self.settings, **self.build_options)

    def stop(self) -> None:
        """End every worker."""
        for worker in self.workers:
            self.cluster.stop(worker)
        self.workers.clear()

    def publish(self, published: Published, probe: tuple[Sequence[int], Sequence[int]] | None) -> list[Pending]:
        """Send weights to every worker; each answers with the probe's log-probs under them."""
        self.current = published
        return [
            worker.submit("load_weights", published.exported, version=published.version, probe=probe)
            for worker in self.workers
        ]

    def map(self, method: str, items: Sequence[Any], **options: Any) -> Dealt:
        """Deal items out in turn: worker w of W gets items w, w + W, ..."""
        shares = [list(items[index :: len(self.workers)]) for index in range(len(self.workers))]
        calls = [self.workers[i].submit(method, share, **options) if share else None for i, share in enumerate(shares)]
        return Dealt(self, method, shares, options, calls, len(items))

    def turn(self, turn: Turn) -> None:
        """Where a GPU is shared: give it to whoever works beside, or take it back."""
        if self.settings.colocated and self.settings.on_gpu:
            gather([worker.submit(turn) for worker in self.workers], self.deadline_s)

    def revive(self) -> None:
        """Replace workers that died while they had nothing to do."""
        for index, call in enumerate([worker.submit("score", []) for worker in self.workers]):
            try:
                call.result(self.deadline_s)
            except ClusterError as error:
                self._replace(index, error)

    def retry(
        self, dead: Worker, error: ClusterError, method: str, index: int, share: list[Any], options: dict[str, Any]
    ) -> Any:
        """Replace a dead worker and repeat its share. Seeds are in the requests, so the answer is the same.

        Raises: the last ClusterError, when replacements die as well.
        """
        for attempt in range(_REPLACEMENTS):
            try:
                if self.workers[index] is dead:  # else another batch of its has replaced it already
                    self._replace(index, error)
                return self.workers[index].submit(method, share, **options).result(self.deadline_s)
            except ClusterError as again:
                if attempt == _REPLACEMENTS - 1:
                    raise
                dead, error = self.workers[index], again
        raise AssertionError("a loop that returns or raises")

    def _replace(self, index: int, error: ClusterError) -> None:
        self.cluster.note(f"replacing a worker: {error}")
        self.replaced += 1
        self.cluster.stop(self.workers[index])
        self._start(index).result(self.deadline_s)
        if self.current is not None:
            exported, version = self.current.for_newcomer(), self.current.version
            loaded = self.workers[index].submit("load_weights", exported, version=version, probe=None)
            loaded.result(self.deadline_s)


@dataclass
class Dealt:
    """Calls in flight over a fleet."""

    fleet: Fleet
    method: str
    shares: list[list[Any]]
    options: dict[str, Any]
    calls: list[Pending | None]
    count: int

    def results(self) -> list[Any]:
        """Each worker's answer, None for a worker without work; dead workers are replaced once and asked again."""
        answers = []
        for index, call in enumerate(self.calls):
            try:
                answers.append(call.result(self.fleet.deadline_s) if call else None)
            except ClusterError as error:
                assert call is not None
                share = self.shares[index]
                answers.append(self.fleet.retry(call.worker, error, self.method, index, share, self.options))
        return answers

    def in_order(self, answers: Sequence[Sequence[Any] | None]) -> list[Any]:
        """Undo the dealing."""
        width = len(self.shares)
        return [answers[index % width][index // width] for index in range(self.count)]  # type: ignore[index]


@dataclass(frozen=True)
class Sampling:
    """How a batch is sampled."""

    n: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0  # below 1 in evaluation only: what is trained on comes from the whole distribution


@dataclass
class Sampled:
    """Rollouts in flight."""

    dealt: Dealt
    prompts: list[Prompt]
    requests: list[Request]
    tokenizer: Any

    def groups(self) -> list[RolloutGroup]:
        """Wait and turn samples into records. Raises: RolloutError when an engine returns another count than asked."""
        answers = self.dealt.results()
        versions = [answer[0] if answer else -1 for answer in answers]
        samples = self.dealt.in_order([answer[1] if answer else None for answer in answers])
        groups = []
        for index, (prompt, request, found) in enumerate(zip(self.prompts, self.requests, samples, strict=True)):
            if len(found) != request.n:
                raise RolloutError(f"prompt {prompt.example.id}: asked for {request.n} completions, got {len(found)}")
            version = versions[index % len(versions)]
            groups.append(
                RolloutGroup(prompt, tuple(self._rollout(s, request.seed + i, version) for i, s in enumerate(found)))
            )
        return groups

    def _rollout(self, sample: Sample, seed: int, version: int) -> Rollout:
        return Rollout(
            completion_ids=sample.token_ids,
            rollout_logprobs=sample.logprobs,
            finish_reason="stop" if sample.finish_reason == "stop" else "length",
            text=self.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            seed=seed,
            min_version=version,
            max_version=version,
        )


def sample(
    fleet: Fleet,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
    tokenizer: Any,
    *,
    ids: Sequence[tuple[int, ...]] | None = None,
) -> Sampled:
    """Start sampling; every engine sees token ids only.

    Args:
        ids: what to continue, where that isn't the prompts' own ``token_ids`` (privileged rollouts, second turns).
    """
    contexts = ids if ids is not None else [prompt.token_ids for prompt in prompts]
    requests = [Request(context, sampling.n, seed) for context, seed in zip(contexts, seeds, strict=True)]
    dealt = fleet.map(
        "generate",
        requests,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        top_p=sampling.top_p,
        stop_ids=[tokenizer.eos_token_id],
    )
    return Sampled(dealt, list(prompts), requests, tokenizer)


def score(fleet: Fleet, sequences: Sequences) -> Dealt:
    """Start scoring (prompt_ids, completion_ids) pairs."""
    return fleet.map("score", list(sequences))
