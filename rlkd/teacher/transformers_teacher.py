"""A teacher on the learner's own packed forward pass. (A vLLM teacher is a RolloutWorker with other weights.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkd.data.token_bytes import starts_pretoken
from rlkd.learner.comparison import Head, boundary_mass
from rlkd.learner.packing import MicroBatch, pack, plan_micro_batches, score_sequences
from rlkd.learner.policy import PackedPolicy, load_causal_lm
from rlkd.models import load_tokenizer
from rlkd.records import TopK, TrainRow
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.tensors import chunked_logprobs
from rlkd.tensors.chunked import CHUNK_BYTES

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


class TransformersTeacher:
    """Scores at any temperature, and without an engine gap between teacher and learner."""

    def __init__(self, settings: EngineSettings, *, temperature: float, tokens_per_batch: int) -> None:
        self.folder = settings.folder
        self.device = "cuda" if settings.on_gpu else "cpu"
        self.tokens_per_batch = tokens_per_batch
        model = load_causal_lm(settings.folder, dtype=getattr(torch, settings.dtype)).to(self.device)
        self.policy = PackedPolicy(model.eval().requires_grad_(False), temperature=temperature)

    def sleep(self) -> None:
        """Give a shared GPU to the learner."""
        self.policy.model.to("cpu")
        torch.cuda.empty_cache()

    def wake(self) -> None:
        """Take it back."""
        self.policy.model.to(self.device)

    def score(self, sequences: Sequences) -> list[list[float]]:
        """Log-probabilities (nats, at the sampling temperature) of each (prompt_ids, completion_ids) pair."""
        return score_sequences(self.policy, sequences, token_budget=self.tokens_per_batch, device=self.device)

    def hidden(self, sequences: Sequences) -> list[Tensor]:
        """[C, E] final hidden states before each completion token, on the CPU, in the model's own precision."""
        return self._each(sequences, lambda batch: self.policy.hidden(batch).cpu())

    def bounded(self, sequences: Sequences) -> list[tuple[list[float], list[float]]]:
        """For each completion token: its log-prob, and the log-mass of all tokens there that begin a new pre-token."""
        module = self.policy.model.get_output_embeddings()
        head = Head(module.weight, getattr(module, "bias", None))
        starts = torch.tensor(starts_pretoken(load_tokenizer(self.folder)), device=self.device)

        def rows(batch: MicroBatch) -> Tensor:
            hidden = self.policy.hidden(batch)
            temperature = self.policy.temperature
            logprobs, _ = chunked_logprobs(
                hidden=hidden,
                head_weight=module.weight,
                head_bias=head.bias,
                targets=batch.targets,
                temperature=temperature,
            )
            mass = boundary_mass(starts, hidden=hidden, head=head, temperature=temperature)
            return torch.stack([logprobs, mass], 1).cpu()

        return [(both[:, 0].tolist(), both[:, 1].tolist()) for both in self._each(sequences, rows)]

    def top_k(self, sequences: Sequences, *, k: int) -> list[TopK]:
        """The k most likely entries before each completion token, with their log-probs at the sampling temperature."""

        def rows(batch: MicroBatch) -> Tensor:
            head = self.policy.model.get_output_embeddings()
            size = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
            found = []
            for part in self.policy.hidden(batch).split(size):
                values, ids = (head(part).float() / self.policy.temperature).log_softmax(-1).topk(k)
                found.append(torch.stack([ids.double(), values.double()], 1))  # ids are exact in float64
            return torch.cat(found).cpu()

        views = []
        for both in self._each(sequences, rows):
            ids, logprobs = both[:, 0].long().tolist(), both[:, 1].tolist()
            views.append(TopK(tuple(map(tuple, ids)), tuple(map(tuple, logprobs))))
        return views

    @torch.no_grad()
    def _each(self, sequences: Sequences, of: Callable[[MicroBatch], Tensor]) -> list[Any]:
        """A [N, ...] result of each pack, cut into completions, in the order of ``sequences``."""
        prompts: dict[tuple[int, ...], int] = {}
        rows = []
        for index, (prompt, completion) in enumerate(sequences):
            key, tokens = tuple(prompt), tuple(completion)
            group = prompts.setdefault(key, len(prompts))
            rows.append(TrainRow(group, key, tokens, (0.0,) * len(tokens), advantage=0.0, index=index))
        results: list[Any] = [None] * len(rows)
        for groups in plan_micro_batches(rows, token_budget=self.tokens_per_batch):
            batch = pack(groups, device=self.device)
            lengths = [len(row.completion_ids) for row in batch.rows]
            for row, values in zip(batch.rows, of(batch).split(lengths), strict=True):
                results[row.index] = values.clone()  # not a view: it travels alone
        return results
