"""One learner rank: rows in, gradients, one or more optimizer updates, statistics out. Knows no recipe stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from rlkd.data.token_bytes import starts_pretoken
from rlkd.divergences import Kind
from rlkd.errors import NumericsError, RolloutError
from rlkd.learner.deepspeed_engine import DeepSpeedEngine, loading_sharded
from rlkd.learner.figures import Counts, Kept, StepPass, add_figure, add_gap, peak_memory_gib
from rlkd.learner.loss import Denominators, Signals, build_loss
from rlkd.learner.packing import MicroBatch, blank, pack, plan_micro_batches, score_rows
from rlkd.learner.policy import DTYPES, PackedPolicy, load_causal_lm, with_adapters
from rlkd.learner.privileged_loss import ContextSignals, contexts
from rlkd.learner.schedule import learning_rate
from rlkd.learner.teacher_views import read_heads
from rlkd.learner.teaching import SelfTeaching, Teaching, needs_copy, self_teacher_of
from rlkd.learner.weights import Route, Sent, checksum, published
from rlkd.models import load_tokenizer
from rlkd.recipe import Recipe
from rlkd.records import Chunks, Term, TrainRow

if TYPE_CHECKING:  # the module imports vLLM, which the object store does without
    from rlkd.learner.sending import WeightSender


@dataclass(frozen=True)
class Update:
    """One optimizer update's share of one rank, and the denominators of all ranks together."""

    rows: tuple[TrainRow, ...]
    denominators: Denominators
    micro_batches: int  # the same on every rank: ranks with fewer pad with empty passes


class Learner:
    """The policy under DeepSpeed, on one rank."""

    def __init__(self, recipe: Recipe, folder: Path, *, rank: int, world_size: int, total_updates: int) -> None:
        self.recipe = recipe
        self.rank = rank
        self.total_updates = total_updates
        self.updates = 0
        self.sender: WeightSender | None = None
        self.loss = build_loss(recipe.objective)
        precision = recipe.learner.precision or "fp32"
        with loading_sharded(recipe.learner, recipe.optim, world_size):
            model = load_causal_lm(folder, dtype=DTYPES[precision])
        self.tied = bool(model.config.tie_word_embeddings)
        model = with_adapters(model, recipe.learner.lora)
        if recipe.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        policy = PackedPolicy(model, temperature=recipe.rollout.temperature)
        self.engine = DeepSpeedEngine(policy, learner=recipe.learner, optim=recipe.optim, world_size=world_size)
        self.policy: Any = self.engine.engine
        self.reference = self._load_reference(folder, DTYPES[precision])
        self.teaching = self._teaching(folder, DTYPES[precision])

    # ------------------------------------------------------------ scoring

    def score(self, rows: Sequence[TrainRow], *, reference: bool = False) -> list[list[float]]:
        """Log-probabilities of every row's completion, in the order of ``rows``."""
        self.policy.eval()
        return score_rows(
            lambda batch: self._forward(batch, reference=reference),
            rows,
            token_budget=self.recipe.learner.tokens_per_micro_batch,
            device=self.engine.device,
        )

    def score_other(self, rows: Sequence[TrainRow], *, exact: Kind | None = None) -> list[list[float]]:
        """Each row's completion in its other context: log-probs of the self-teacher, or their divergence."""
        self.policy.eval()
        return self.teaching.other_scores(
            rows,
            exact=exact,
            forward=self.policy,
            token_budget=self.recipe.learner.tokens_per_micro_batch,
            device=self.engine.device,
        )

    @torch.no_grad()
    def _scores(self, update: Update, *, reference: bool = False) -> dict[int, list[float]]:
        """Log-probs of an update's completions by row index. Ranks with less work join every pass of the others."""
        self.policy.eval()
        found: dict[int, list[float]] = {}
        for batch in self._padded(update):
            if batch is None:
                self._padding_loss(reference=reference)
                continue
            grid = batch.scatter(self._forward(batch, reference=reference).logprobs).cpu().tolist()
            for row, values in zip(batch.rows, grid, strict=True):
                found[row.index] = values[: len(row.completion_ids)]
        return found

    def _forward(self, batch: MicroBatch, *, reference: bool = False, with_entropy: bool = False) -> Any:
        if not reference:
            return self.policy(batch, with_entropy=with_entropy)
        if self.reference is not None:
            return self.reference(batch)
        with self.policy.module.model.disable_adapter():  # LoRA: the frozen base is the reference
            return self.policy(batch)

    # ------------------------------------------------------------ training

    def train_step(self, updates: Sequence[Update], *, step: int, keep: int = 0) -> tuple[Counts, Kept]:
        """Run the step's updates.

        Args:
            keep: rollouts whose ``policy_logprobs``, before the step's first update, are returned for the rollout log:
                the first so many of the step.

        Returns: statistics as (sum, count) pairs of this rank, and log-probs by rollout index.

        Raises: NumericsError when a loss or gradient norm is not finite; nothing has been written then.
        """
        proximal: dict[int, list[float]] = {}
        for update in updates if len(updates) > 1 else ():  # the policy will move within the step: keep where it stood
            proximal |= self._scores(update)
        pass_ = StepPass(step, proximal, keep, len(updates))
        for index, update in enumerate(updates):
            self._update(update, pass_, first=index == 0)
        pass_.counts["learner_memory_gib/max"] = (peak_memory_gib(), 1.0)
        return pass_.counts, pass_.kept

    def gradients(self, update: Update, *, step: int) -> dict[str, Tensor]:
        """Whole gradients of one update by parameter name, without taking it: proof over ranks and shards."""
        self._backward(update, StepPass(step, {}, 0), first=True)
        return self.engine.whole_gradients()

    def _update(self, update: Update, pass_: StepPass, *, first: bool) -> None:
        self._backward(update, pass_, first=first)
        lr = learning_rate(self.recipe.optim, self.updates, self.total_updates)
        norm = self.engine.step(lr)
        if not norm < float("inf"):
            raise NumericsError(f"rank {self.rank}, step {pass_.step}: the gradient norm is {norm}")
        self.updates += 1
        if self.teaching.self_teacher is not None:
            self.teaching.self_teacher.after_update(self._weights())
        if self.rank == 0:
            add_figure(pass_.counts, "grad_norm", norm, 1)
            add_figure(pass_.counts, "lr", lr, 1)

    def _backward(self, update: Update, pass_: StepPass, *, first: bool) -> None:
        self.policy.train()
        batches = self._padded(update)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            loss = self._padding() if batch is None else self._loss(batch, update, pass_, first)
            if not torch.isfinite(loss):
                raise NumericsError(
                    f"rank {self.rank}, step {pass_.step}: the loss is {float(loss)}; nothing was updated"
                )
            self.engine.backward(loss, last=last)

    def _loss(self, batch: MicroBatch, update: Update, pass_: StepPass, first: bool) -> Tensor:
        against, taught = self.teaching.compare(batch)
        output = self.policy(batch, with_entropy=True, against=against)
        signals = self._signals(batch, batch.scatter(output.logprobs), pass_.proximal)
        if output.divergence is not None and output.clipped_share is not None:
            compared = batch.scatter(output.divergence), batch.scatter(output.clipped_share)
            signals = replace(contexts(signals), divergence=compared[0], clipped_share=compared[1])
        if taught is not None:
            signals = replace(signals, teacher_logprobs=batch.scatter(taught))
        loss, stats = self.loss(signals, update.denominators, pass_.step)
        counts = pass_.counts
        add_figure(counts, "loss", float(loss.detach()) / pass_.updates, 0)
        for name, (total, count) in stats.items():
            add_figure(counts, name, float(total), float(count))
        mask = signals.response_mask
        if output.entropy is not None:
            entropy = batch.scatter(output.entropy)
            add_figure(counts, "entropy", float(entropy[mask].sum()), float(mask.sum()))
        if first:
            add_gap(counts, signals)
        for row, values in zip(batch.rows, signals.proximal_logprobs, strict=True):
            if 0 <= row.index < pass_.keep and row.index not in pass_.kept:
                pass_.kept[row.index] = values[: len(row.completion_ids)].tolist()
        return loss

    def _signals(self, batch: MicroBatch, policy_logprobs: Tensor, proximal: Mapping[int, list[float]]) -> Signals:
        def grid(values: Sequence[Sequence[float] | None]) -> Tensor:
            flat = [value for row in values for value in (row or ())]
            return batch.scatter(torch.tensor(flat, dtype=torch.float32, device=policy_logprobs.device))

        rows = batch.rows
        real = batch.scatter(torch.ones_like(batch.targets)).bool()
        trained = torch.tensor([row.trained for row in rows], device=real.device)
        teacher = grid([row.teacher_logprobs for row in rows]) if rows[0].teacher_logprobs is not None else None
        reference = None
        if self._needs_reference():
            with torch.no_grad():
                reference = batch.scatter(self._forward(batch, reference=True).logprobs)
        before = grid([proximal[row.index] for row in rows]) if proximal else policy_logprobs.detach()
        masks = {
            term: real & (trained & torch.tensor([row.term == term for row in rows], device=real.device))[:, None]
            for term in get_args(Term)
        }
        advantages = torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=real.device)
        return ContextSignals(
            policy_logprobs=policy_logprobs,
            proximal_logprobs=before,
            rollout_logprobs=grid([row.rollout_logprobs for row in rows]),
            advantages=advantages[:, None].expand_as(policy_logprobs),
            response_mask=masks["sampled"],
            term_masks=masks,
            chunks=tuple(row.teacher_view if isinstance(row.teacher_view, Chunks) else None for row in rows),
            distill_rows=torch.tensor([row.distilled for row in rows], device=real.device),
            teacher_logprobs=teacher,
            reference_logprobs=reference,
        )

    def _padding(self) -> Tensor:
        """The passes of a micro-batch that only other ranks have, in their order."""
        self.teaching.join()
        loss = self._padding_loss()
        if self._needs_reference():
            with torch.no_grad():
                self._padding_loss(reference=True)
        return loss

    def _padding_loss(self, *, reference: bool = False) -> Tensor:
        """A pass that contributes nothing, so that every rank joins every collective."""
        output = self._forward(blank(self.engine.device), reference=reference)
        return torch.as_tensor(output.logprobs.sum() * 0.0)

    def _padded(self, update: Update) -> list[MicroBatch | None]:
        """The update's micro-batches, and a None for each pass that only other ranks have work for."""
        plan = plan_micro_batches(update.rows, token_budget=self.recipe.learner.tokens_per_micro_batch)
        batches: list[MicroBatch | None] = [pack(groups, device=self.engine.device) for groups in plan]
        return batches + [None] * (update.micro_batches - len(batches))

    # ------------------------------------------------------------ weights and checkpoints

    def export_weights(self) -> tuple[list[tuple[str, Tensor]], int] | None:
        """Weights by transformers' names, on the CPU, with their checksum; None on every rank but 0."""
        named: list[tuple[str, Tensor]] = []
        for name, tensor in self.published():
            if self.rank == 0:
                named.append((name, tensor.to("cpu", copy=True)))
        return None if self.rank else (named, checksum(named))

    def published(self) -> Iterator[tuple[str, Tensor]]:
        """Weights as the engines take them, which tie the head themselves."""
        return self._weights(tied=self.tied)

    def _weights(self, *, tied: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Weights by transformers' names, gathered layer by layer: every rank has to go through all of them."""
        for state in self.engine.gathered_layers():
            yield from published(self.policy.module.model, state, tied=tied)

    def join_engines(self, route: Route) -> None:
        """Meet the rollout engines, anew if need be; rank 0 sends."""
        from rlkd.learner.sending import WeightSender

        if self.sender is not None:
            self.sender.close()
        self.sender = WeightSender(route, self.published, rank=self.rank)

    def send_weights(self) -> Sent | None:
        """Weights straight to the engines that were joined; None on every rank but 0."""
        if self.sender is None:
            raise RolloutError(f"rank {self.rank}: weights are to be sent before the engines were joined")
        return self.sender.send()

    def save(self, folder: Path) -> None:
        """This rank's training state."""
        self.engine.save(folder)
        if self.teaching.self_teacher is not None and self.rank == 0:
            self.teaching.self_teacher.save(folder)

    def load(self, folder: Path, *, updates: int) -> None:
        """Continue from ``save``; ``updates`` places the learning-rate schedule."""
        self.engine.load(folder)
        self.updates = updates
        if self.teaching.self_teacher is not None:
            self.teaching.self_teacher.load(folder)

    def save_policy(self, folder: Path) -> None:
        """Rank 0 writes the whole model in transformers' format; LoRA is merged."""
        weights: dict[str, Tensor] = {}
        for name, tensor in self._weights():
            if self.rank == 0:
                weights[name] = tensor.to("cpu", copy=True)
        if self.rank == 0:
            model = self.policy.module.model
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.save_pretrained(folder, state_dict=weights)

    def _teaching(self, folder: Path, dtype: torch.dtype) -> Teaching:
        recipe, spec = self.recipe, self_teacher_of(self.recipe)
        if getattr(recipe.objective, "debias", None) is not None:
            starts = torch.tensor(starts_pretoken(load_tokenizer(folder)), device=self.engine.device)
            return Teaching(recipe, None, {}, starts)
        if spec is None:
            return Teaching(recipe, None, {})
        copy = None
        if needs_copy(recipe):
            model = load_causal_lm(folder, dtype=dtype).to(self.engine.device).eval().requires_grad_(False)
            copy = PackedPolicy(model, temperature=recipe.rollout.temperature)
        budget = recipe.learner.tokens_per_micro_batch
        most = self.engine.most if copy is None else int
        teacher = SelfTeaching(lambda: self.policy.module, spec, copy, budget, self.policy, most)
        return Teaching(recipe, teacher, {})

    def hold_heads(self, folders: Mapping[str, str]) -> None:
        """Read the output matrices of teachers that send hidden states."""
        weight = self.policy.module.model.get_output_embeddings().weight
        self.teaching.heads.update(read_heads(dict(folders), self.engine.device, weight.dtype))

    def _needs_reference(self) -> bool:
        return bool(getattr(self.recipe.objective, "kl_coef", 0.0))

    def _load_reference(self, folder: Path, dtype: torch.dtype) -> PackedPolicy | None:
        if not self._needs_reference() or self.recipe.learner.lora:
            return None
        model = load_causal_lm(folder, dtype=dtype).to(self.engine.device).eval().requires_grad_(False)
        return PackedPolicy(model, temperature=self.recipe.rollout.temperature)
