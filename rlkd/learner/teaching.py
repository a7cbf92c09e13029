"""What each micro-batch of the learner is taught by: the policy itself in another context, or what a teacher sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkd.divergences import Kind
from rlkd.errors import NumericsError, TeacherError
from rlkd.learner.comparison import Comparison, Head, HiddenComparison, Measure
from rlkd.learner.packing import MicroBatch, blank, cut_group, group_cost, pack, plan_micro_batches
from rlkd.learner.policy import PackedPolicy, PolicyOutput
from rlkd.learner.teacher_views import boundaries, sent_comparisons
from rlkd.recipe import Recipe
from rlkd.recipe.objectives import OpdObjective, OpsdObjective, PiDistillObjective, PolicyGradient
from rlkd.recipe.privileged import SelfTeacher
from rlkd.records import TrainRow


@dataclass
class SelfTeaching:
    """The policy's own weights (live, frozen or averaged) in the row's other context: eval mode, no gradient."""

    live: Callable[[], PackedPolicy]  # the trained module
    spec: SelfTeacher
    copy: PackedPolicy | None  # None: live, or frozen under adapters
    token_budget: int
    forward: Callable[..., Any] | None = None  # how the trained module is called; None: directly
    most: Callable[[int], int] = int  # passes of this rank -> of the rank that has most: sharded passes need all ranks
    average: dict[str, Tensor] = field(default_factory=dict)  # float32: a bfloat16 average would never move

    def __post_init__(self) -> None:
        if self.spec.weights == "ema" and self.copy is not None:
            self.average = {
                name: value.detach().float().clone()
                for name, value in self.copy.model.state_dict().items()
                if value.is_floating_point()
            }

    @torch.no_grad()
    def hidden(self, batch: MicroBatch | None) -> Tensor:
        """[N, D] final hidden states, in parts of at most ``token_budget`` packed tokens.

        ``None``: only other ranks have something to be taught; this one joins their passes. Returns: an empty tensor.
        """
        return self._passes(batch, lambda forward, part: forward(part, hidden_only=True))

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch | None) -> Tensor:
        """[N] of the completion tokens in the batch's (the other) context; ``None`` as in ``hidden``."""
        return self._passes(batch, lambda forward, part: forward(part).logprobs)

    def _passes(self, batch: MicroBatch | None, of: Callable[[Callable[..., Any], MicroBatch], Tensor]) -> Tensor:
        policy = self.copy or self.live()
        forward = self.copy or self.forward or policy
        own = [] if batch is None else list(parts(batch, self.token_budget))
        idle = self.most(len(own)) - len(own)
        was_training = policy.training
        policy.eval()  # dropout in a teacher would be noise in the signal
        with self._weights(policy):
            found = [of(forward, part) for part in own]
            for _ in range(idle):
                of(forward, blank(next(policy.parameters()).device))
        policy.train(was_training)
        return torch.cat(found) if found else torch.empty(0)

    def _weights(self, policy: PackedPolicy) -> AbstractContextManager[Any]:
        """LoRA: without its adapters the model is the frozen base."""
        if self.copy is None and self.spec.weights == "frozen":
            return policy.model.disable_adapter()  # type: ignore[no-any-return]
        return nullcontext()

    @property
    def head(self) -> Head:
        """The copy's head, or the policy's own."""
        if self.copy is None:
            return Head()
        head = self.copy.model.get_output_embeddings()
        return Head(head.weight, getattr(head, "bias", None))

    @torch.no_grad()
    def after_update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Move the average towards the policy's weights, adapters merged; the other kinds read none and stay."""
        if not self.average:
            return
        for name, value in weights:
            if value.is_floating_point():
                average = self.average[name]
                average.lerp_(value.to(average.device, torch.float32), 1 - self.spec.ema_decay)
        self._write_average()

    @torch.no_grad()
    def _write_average(self) -> None:
        assert self.copy is not None
        for name, value in self.copy.model.state_dict().items():
            if name in self.average:
                value.copy_(self.average[name])

    def save(self, folder: Path) -> None:
        """The average belongs to the training state."""
        if self.average:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.average, folder / "ema.pt")

    def load(self, folder: Path) -> None:
        """Undo ``save``. Raises: TeacherError when the checkpoint has no average."""
        if not self.average:
            return
        path = folder / "ema.pt"
        if not path.is_file():
            raise TeacherError(f"{folder} holds no moving average, but teacher.weights is 'ema'")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self.average.items():
            value.copy_(saved[name])
        self._write_average()


def other_context(batch: MicroBatch) -> tuple[MicroBatch | None, Tensor]:
    """The micro-batch's rows that have a ``teacher_prompt_ids``, on that prompt, and the positions they fill.

    Returns: the pack (None without such rows) and [M] indices into the batch's N tokens, in the same order: token j of
        the pack is token positions[j] of the batch.
    """
    chosen = torch.tensor([row.teacher_prompt_ids is not None for row in batch.rows], device=batch.row.device)
    positions = chosen[batch.row].nonzero().squeeze(1)
    rows = [row for row in batch.rows if row.teacher_prompt_ids is not None]
    if not rows:
        return None, positions
    moved = [replace(row, prompt_ids=row.teacher_prompt_ids or ()) for row in rows]
    other = pack(_runs(moved), device=batch.targets.device)
    if not torch.equal(other.targets, batch.targets[positions]):
        raise NumericsError("the teacher's context and the policy's hold different completion tokens")
    return other, positions


def _runs(rows: Sequence[TrainRow]) -> list[list[TrainRow]]:
    """Neighbouring rows of one prompt; unlike a regrouping, this keeps their order."""
    return [list(part) for _, part in groupby(rows, key=lambda row: (row.group, row.prompt_ids))]


def parts(batch: MicroBatch, token_budget: int) -> Iterator[MicroBatch]:
    """The same rows in order, in packs of at most ``token_budget`` tokens where a single row allows it."""
    groups = _runs(batch.rows)
    if sum(map(group_cost, groups)) <= token_budget:
        yield batch
        return
    groups = [part for group in groups for part in cut_group(group, token_budget)]
    part: list[list[TrainRow]] = []
    used = 0
    for group in groups:
        cost = group_cost(group)
        if part and used + cost > token_budget:
            yield pack(part, device=batch.targets.device)
            part, used = [], 0
        part.append(group)
        used += cost
    yield pack(part, device=batch.targets.device)


@dataclass
class Teaching:
    """Everything that the objective compares the policy with."""

    recipe: Recipe
    self_teacher: SelfTeaching | None
    heads: dict[str, Head]
    starts_pretoken: Tensor | None = None  # [V] of the policy; ALM's debiasing

    def compare(self, batch: MicroBatch) -> tuple[list[Comparison], Tensor | None]:
        """Comparisons of a micro-batch, and [N] teacher log-probs where a sampled-token objective reads them."""
        found, sampled = self._compare(batch)
        objective = self.recipe.objective
        if not isinstance(objective, PolicyGradient) or objective.reduction != "token":
            return found, sampled
        if objective.correction.kind != "none" and objective.correction.level == "sequence":
            return found, sampled  # each token weighs as those before it say
        counts = torch.tensor([row.trained and row.distilled for row in batch.rows], device=batch.row.device)[batch.row]
        return [
            replace(one, weighed_alike=counts[one.positions]) if isinstance(one, HiddenComparison) else one
            for one in found
        ], sampled

    def _compare(self, batch: MicroBatch) -> tuple[list[Comparison], Tensor | None]:
        objective = self.recipe.objective
        if isinstance(objective, OpdObjective):
            measure = _measure(objective)
            return ([], None) if measure is None else (sent_comparisons(batch, measure, self.heads), None)
        if self.starts_pretoken is not None:
            return boundaries(batch, self.starts_pretoken), None
        if not self._teaches_in_loss:
            return [], None
        other, positions = other_context(batch)
        found = self._ask(other)
        if other is None:
            return [], None
        assert self.self_teacher is not None
        if isinstance(objective, PiDistillObjective):
            return self._two_views(batch, found, positions), None
        assert isinstance(objective, OpsdObjective)
        measure = _measure(objective)
        if measure is None:
            values = torch.zeros(len(batch.targets), device=positions.device)
            return [], values.index_copy(0, positions, found.float())
        return [HiddenComparison(measure, found, positions, self.self_teacher.head)], None

    def join(self) -> None:
        """The teacher's passes of a micro-batch that only other ranks have."""
        if self._teaches_in_loss:
            self._ask(None)

    @property
    def _teaches_in_loss(self) -> bool:
        objective = self.recipe.objective
        return isinstance(objective, OpsdObjective | PiDistillObjective) and objective.kl_in == "loss"

    def _ask(self, other: MicroBatch | None) -> Tensor:
        assert self.self_teacher is not None
        sampled = getattr(self.recipe.objective, "divergence", None) == "sampled"
        return self.self_teacher.logprobs(other) if sampled else self.self_teacher.hidden(other)

    def _two_views(self, batch: MicroBatch, hidden: Tensor, positions: Tensor) -> list[Comparison]:
        """Eq 2: KL(privileged || sg bare) on the privileged rows; Eq 3: KL(sg privileged || bare) on the bare ones."""
        assert self.self_teacher is not None
        head = self.self_teacher.head
        is_bare = torch.tensor([row.term == "bare" for row in batch.rows], device=positions.device)
        bare = is_bare[batch.row[positions]]
        pairs = ((Measure("reverse_kl"), ~bare), (Measure("forward_kl"), bare))
        return [HiddenComparison(m, hidden[mask], positions[mask], head) for m, mask in pairs if bool(mask.any())]

    @torch.no_grad()
    def other_scores(
        self,
        rows: Sequence[TrainRow],
        *,
        exact: Kind | None,
        forward: Callable[..., PolicyOutput],
        token_budget: int,
        device: torch.device | str,
    ) -> list[list[float]]:
        """For each row and completion token: log-prob in the other context, or the divergence of the two contexts.

        Args:
            exact: None for log-probs, else the divergence over the whole vocabulary, policy side first.
            forward: the policy's own pass; called in eval mode by the caller.

        Returns: nats, in the order of ``rows``; zeros for rows without another context.
        """
        assert self.self_teacher is not None
        place = {id(row): index for index, row in enumerate(rows)}
        results: list[list[float]] = [[] for _ in rows]
        for groups in plan_micro_batches(rows, token_budget=token_budget):
            batch = pack(groups, device=device)
            other, positions = other_context(batch)
            values = torch.zeros(len(batch.targets), device=device)
            if other is not None and exact is None:
                values = values.index_copy(0, positions, self.self_teacher.logprobs(other).float())
            elif other is not None:
                hidden = self.self_teacher.hidden(other)
                view = HiddenComparison(Measure(exact or "reverse_kl"), hidden, positions, self.self_teacher.head)
                found = forward(batch, against=[view]).divergence
                assert found is not None
                values = found.float()
            for row, line in zip(batch.rows, batch.scatter(values).tolist(), strict=True):
                results[place[id(row)]] = line[: len(row.completion_ids)]
        return results


def _measure(objective: OpsdObjective | OpdObjective) -> Measure | None:
    """None: the sampled token alone."""
    if objective.divergence == "sampled":
        return None
    mixes = objective.divergence == "jensen_shannon"
    return Measure(
        kind=objective.divergence,
        mixture_weight=objective.mixture_weight if mixes else None,
        clip=math.inf if objective.clip is None else objective.clip,
    )


def needs_copy(recipe: Recipe) -> bool:
    """Whether the self-teacher needs weights of its own beside the trained ones."""
    spec = recipe.teacher
    if not isinstance(recipe.objective, OpsdObjective) or not isinstance(spec, SelfTeacher):
        return False
    return spec.weights == "ema" or (spec.weights == "frozen" and recipe.learner.lora is None)


def self_teacher_of(recipe: Recipe) -> SelfTeacher | None:
    """The recipe's, or pi-Distill's implied one: its KL is to the CURRENT other view."""
    if isinstance(recipe.objective, PiDistillObjective):
        return SelfTeacher(weights="live")
    return recipe.teacher if isinstance(recipe.teacher, SelfTeacher) else None
