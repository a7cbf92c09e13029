"""Losses over several contexts: whole-vocabulary distillation, pi-Distill, RLTF and cross-tokenizer matching."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlkd import objectives
from rlkd.divergences import alm, chunk_logprobs
from rlkd.errors import NumericsError
from rlkd.learner.loss import (
    Denominators,
    Loss,
    PolicyGradientLoss,
    Signals,
    Stats,
    clean,
    clipped,
    coefficient,
    correction,
    ratios,
    reduced,
    reference_term,
    stats,
    surrogate,
)
from rlkd.recipe.objectives import (
    AlmObjective,
    OpdObjective,
    OpsdObjective,
    PiDistillObjective,
    PolicyGradient,
    RltfObjective,
)
from rlkd.records import Chunks
from rlkd.tensors import masked_sum, select


@dataclass(frozen=True)
class ContextSignals(Signals):
    """Signals of rows in several contexts. ``response_mask`` covers the sampled rows alone."""

    term_masks: Mapping[str, Tensor] = field(default_factory=dict)  # [B, T] trained tokens of each term's rows
    chunks: tuple[Chunks | None, ...] = ()  # [B] pieces shared with another tokenizer's teacher
    divergence: Tensor | None = None  # [B, T] what a comparison found at each token; gradient flows here too
    clipped_share: Tensor | None = None  # [B, T] teacher mass that the clip cut


def contexts(signals: Signals) -> ContextSignals:
    """What the learner builds for these objectives. Raises: NumericsError for signals of a single context."""
    if not isinstance(signals, ContextSignals):
        raise NumericsError("this objective trains in several contexts; its signals must say which rows are which")
    return signals


def build_privileged_loss(objective: PolicyGradient | AlmObjective) -> Loss:
    """The loss of an objective that trains in more than one context. Raises: NumericsError for any other."""
    if isinstance(objective, OpsdObjective | OpdObjective):
        return DistributionLoss(objective)
    if isinstance(objective, PiDistillObjective):
        return PiDistillLoss(objective)
    if isinstance(objective, RltfObjective):
        return RltfLoss(objective)
    if isinstance(objective, AlmObjective):
        return AlmLoss(objective)
    raise NumericsError(f"no loss is known for {type(objective).__name__}")


@dataclass(frozen=True)
class DistributionLoss:
    """reward_coef * policy gradient + distill_coef * divergence from the teacher + kl_coef * KL to the reference."""

    objective: OpsdObjective | OpdObjective

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        chosen, cleaned = self.objective, clean(signals)
        weight = coefficient(chosen.distill_coef, step)
        mask = signals.response_mask & signals.distill_rows[:, None]
        terms: list[Tensor] = []
        figures = stats(cleaned, chosen if chosen.reward_coef else None, taught=mask)
        if chosen.reward_coef:
            per_token = surrogate(chosen, cleaned, cleaned.advantages) * correction(chosen.correction, cleaned)
            terms.append(chosen.reward_coef * reduced(chosen, per_token, cleaned, denominators))
        if chosen.kl_coef:
            terms.append(torch.as_tensor(reference_term(chosen, cleaned, denominators)))
        if getattr(chosen, "kl_in", "loss") == "loss" and weight and bool(mask.any()):
            per_token = self._per_token(cleaned) * self._importance(cleaned)
            term = objectives.reduce(per_token, mask, kind=chosen.reduction, denominator=denominators.distill)
            terms.append(weight * term)
        # a micro-batch without any taught row still joins the backward pass, with nothing
        loss = sum(terms) if terms else masked_sum(signals.policy_logprobs, torch.zeros_like(mask))
        return torch.as_tensor(loss), figures | _compared(signals, mask)

    def _importance(self, signals: Signals) -> Tensor | float:
        """A whole-vocabulary divergence averages over token t exactly: only the tokens before t can need a weight."""
        spec = self.objective.correction
        if self.objective.divergence == "sampled":
            return correction(spec, signals)
        return 1.0 if spec.level == "token" else correction(spec, signals, level="prefix")

    def _per_token(self, signals: Signals) -> Tensor:
        if self.objective.divergence != "sampled":
            return _divergence(signals)
        if signals.teacher_logprobs is None:
            raise NumericsError("the sampled-token objective needs teacher log-probs of every row")
        pull = signals.teacher_logprobs - signals.policy_logprobs
        advantages = pull.detach()  # credit: back-propagated, the teacher would cancel (k1 as a loss)
        return objectives.reinforce(policy_logprobs=signals.policy_logprobs, advantages=advantages)


@dataclass(frozen=True)
class PiDistillLoss:
    """alpha * privileged view + (1 - alpha) * bare view of the same rollouts; rows without privileged text: plain RL.

    Row by row this is ``objectives.pi_distill``; the views are rows of their own, so that one forward pass packs both.
    """

    objective: PiDistillObjective

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        chosen = self.objective
        share = coefficient(chosen.teacher_share, step)
        coef = coefficient(chosen.distill_coef, step)
        views = signals.distill_rows[:, None]
        cleaned = clean(signals)
        per_token = surrogate(chosen, cleaned, cleaned.advantages) * correction(chosen.correction, cleaned)
        weights = torch.where(views, share, 1.0)
        loss = self._reduce(per_token * weights, signals.response_mask, denominators)
        bare_mask = contexts(signals).term_masks["bare"]
        # pi_S / pi_T at sampling: the denominator stays the distribution that sampled, also after several updates
        bare = clean(replace(signals, proximal_logprobs=signals.rollout_logprobs, response_mask=bare_mask))
        loss = loss + (1 - share) * self._reduce(surrogate(chosen, bare, bare.advantages), bare_mask, denominators)
        if chosen.kl_in == "loss" and coef:
            for weight, mask in ((share, signals.response_mask & views), (1 - share, bare_mask)):
                if bool(mask.any()):
                    loss = loss + coef * weight * self._reduce(_divergence(signals, mask), mask, denominators)
        compared = signals.response_mask & views
        return loss, stats(cleaned, chosen) | _compared(signals, compared) | _ratio(bare, bare_mask, chosen)

    def _reduce(self, per_token: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
        return objectives.reduce(per_token, mask, kind=self.objective.reduction, denominator=denominators.policy)


@dataclass(frozen=True)
class RltfLoss:
    """Multi-turn policy gradient + c_SD * revised answers on the bare prompt + lambda * CE of the feedback's tokens.

    The revision term shares the policy gradient's denominator (Alg. 1 adds the two gradients); the feedback term is a
    mean over its own tokens.
    """

    objective: RltfObjective

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        chosen = self.objective
        loss, figures = PolicyGradientLoss(chosen)(signals, denominators, step)
        revised, critique = contexts(signals).term_masks["revision"], contexts(signals).term_masks["critique"]
        weight = coefficient(chosen.self_distill_coef, step)
        if weight and bool(revised.any()):
            per_token = objectives.rltf_self_distillation(
                policy_logprobs=select(signals.policy_logprobs, revised),
                advantages=select(signals.advantages, revised),
                logprob_floor=-math.inf if chosen.logprob_floor is None else chosen.logprob_floor,
            )
            loss = loss + weight * objectives.reduce(
                per_token, revised, kind=chosen.reduction, denominator=denominators.policy
            )
        weight = coefficient(chosen.feedback_coef, step)
        if weight and bool(critique.any()):
            per_token = objectives.cross_entropy(policy_logprobs=select(signals.policy_logprobs, critique))
            loss = loss + weight * objectives.reduce(
                per_token, critique, kind=chosen.reduction, denominator=denominators.critique
            )
        with torch.no_grad():
            for name, mask in (("revision_nll", revised), ("feedback_nll", critique)):
                figures[name] = (masked_sum(-signals.policy_logprobs, mask), mask.sum())
        return loss, figures


@dataclass(frozen=True)
class AlmLoss:
    """Binary divergence of {this chunk, anything else} over chunks that both tokenizers end; mean over all chunks."""

    objective: AlmObjective

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        del step
        cleaned = clean(signals)
        kept = [
            (row, chunks)
            for row, chunks in enumerate(contexts(signals).chunks)
            if chunks is not None and chunks.ranges and bool(signals.response_mask[row].any())
        ]
        figures = stats(cleaned, None)
        if not kept:
            return signals.policy_logprobs.sum() * 0.0, figures
        lines = [chunk_logprobs(cleaned.policy_logprobs[row], chunks.ranges) for row, chunks in kept]
        policy = torch.cat(lines)
        teacher = policy.new_tensor([value for _, chunks in kept for value in chunks.teacher_logprobs])
        debias: dict[str, Tensor] = {}
        if self.objective.debias is not None:
            sent = [value for _, chunks in kept for value in chunks.teacher_boundary]
            debias["policy_boundary"] = torch.cat([_boundary(contexts(signals), row, chunks) for row, chunks in kept])
            debias["teacher_boundary"] = policy.new_tensor(sent)
        found = alm(
            policy_chunks=policy,
            teacher_chunks=teacher,
            temperature=self.objective.temperature,
            divergence=self.objective.divergence,
            **debias,
        )
        count = torch.tensor(len(found))
        figures["alm"] = (found.detach().sum(), count)
        figures["chunk_log_ratio"] = ((policy - teacher).detach().sum(), count)
        return found.sum() / denominators.distill, figures


def _boundary(signals: ContextSignals, row: int, chunks: Chunks) -> Tensor:
    """[C] the policy's log-mass on each chunk being over; 0 where its completion ends (``teaching.boundaries``)."""
    ends = torch.tensor([end for _, end in chunks.ranges], device=signals.policy_logprobs.device)
    if signals.divergence is None:  # every chunk of the micro-batch ends with its completion
        return signals.policy_logprobs.new_zeros(len(ends))
    return torch.nn.functional.pad(signals.divergence[row], (0, 1)).index_select(0, ends)


def _divergence(signals: Signals, mask: Tensor | None = None) -> Tensor:
    values = contexts(signals).divergence
    if values is None:
        raise NumericsError("no row of the micro-batch was compared with a teacher's distribution")
    return select(values, signals.response_mask if mask is None else mask)


def _compared(signals: Signals, mask: Tensor) -> Stats:
    values, share = contexts(signals).divergence, contexts(signals).clipped_share
    if values is None or share is None:
        return {}
    with torch.no_grad():
        count = mask.sum()
        return {"divergence": (masked_sum(values, mask), count), "clipped_share": (masked_sum(share, mask), count)}


def _ratio(bare: Signals, mask: Tensor, chosen: PolicyGradient) -> Stats:
    """How far the bare view is from the sampler: what clipping does to the student's term."""
    with torch.no_grad():
        count = mask.sum()
        cut = clipped(chosen, ratios(chosen, bare), bare.advantages)
        return {
            "bare_log_ratio": (masked_sum(bare.policy_logprobs - bare.proximal_logprobs, mask), count),
            "bare_clip_fraction": (masked_sum(cut, mask), count),
        }
