"""Switches of an objective, its correction and its adapters that would act on nothing, or against each other."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd.recipe.objectives import (
    ImportanceCorrection,
    KdrlObjective,
    OpdObjective,
    OpsdObjective,
    PiDistillObjective,
    RltfObjective,
)
from rlkd.recipe.schema import Recipe, RlStage, SftStage

_OUTSIDE_LORA = ("lm_head", "embed_tokens")


def _switches(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if getattr(objective, "ratio", "token") == "sequence" and getattr(objective, "dual_clip", None) is not None:
        yield "objective.dual_clip: bounds single tokens, with objective.ratio 'sequence'; leave one of them out"
    if isinstance(objective, KdrlObjective) and objective.form == "advantage" and objective.estimator != "k2":
        yield (
            f"objective.estimator: '{objective.estimator}' belongs to form 'joint'; form 'advantage' always takes the "
            "log-ratio itself; leave it out"
        )
    if isinstance(objective, OpsdObjective | OpdObjective):
        yield from _divergence(objective)
    if isinstance(objective, PiDistillObjective) and objective.kl_in == "loss" and objective.kl_estimator != "exact":
        yield (
            f"objective.kl_estimator: '{objective.kl_estimator}' is for kl_in 'reward'; with 'loss' both terms are "
            "taken over the whole vocabulary; leave it out"
        )
    if isinstance(objective, PiDistillObjective) and objective.kl_coef:
        yield (
            f"objective.kl_coef: {objective.kl_coef}, but 'pi_distill' has no reference; what holds its two views "
            "together is objective.distill_coef"
        )


def _divergence(objective: OpsdObjective | OpdObjective) -> Iterator[str]:
    """Settings of a divergence over the vocabulary, where another one or none is taken."""
    default = type(objective)()
    in_reward = isinstance(objective, OpsdObjective) and objective.kl_in == "reward"
    sampled = in_reward or objective.divergence == "sampled"
    why = (
        "kl_in 'reward' takes the sampled tokens' log-ratio (reverse KL) off the score"
        if in_reward
        else f"divergence is '{objective.divergence}'"
    )
    if in_reward and objective.divergence not in (default.divergence, "sampled"):
        yield f"objective.divergence: '{objective.divergence}' acts on nothing, as {why}; leave it out"
    if sampled and objective.clip is not None:
        yield f"objective.clip: {objective.clip} acts on nothing, as {why}; leave it out"
    mixes = objective.divergence == "jensen_shannon" and not in_reward
    if not mixes and objective.mixture_weight != default.mixture_weight:
        yield f"objective.mixture_weight: {objective.mixture_weight} acts on nothing, as {why}; leave it out"


def _correction(recipe: Recipe) -> Iterator[str]:
    spec = getattr(recipe.objective, "correction", None)
    if not isinstance(spec, ImportanceCorrection):
        return
    where, default = "objective.correction", ImportanceCorrection()
    if spec.kind == "none" and spec != default:
        yield f"{where}: level, low and high act on nothing with kind 'none'; write kind: truncate or mask"
    if spec.kind == "truncate" and spec.low != default.low:
        yield f"{where}.low: {spec.low} is not read with kind 'truncate'; leave it out, or write kind: mask"
    if spec.kind == "mask" and not spec.low <= 1 <= spec.high:
        yield f"{where}: low {spec.low} and high {spec.high} must have 1, the weight of equal policies, between them"
    taught = recipe.objective if isinstance(recipe.objective, OpsdObjective | OpdObjective) else None
    exact = taught is not None and taught.divergence != "sampled"
    if taught and exact and spec.kind != "none" and spec.level == "token" and not taught.reward_coef:
        yield (
            f"{where}.level: 'token' acts on nothing, as a whole-vocabulary divergence needs no weight for its own "
            "token; write level: sequence, which weighs each by the tokens before it"
        )
    if recipe.cluster.max_staleness and spec.kind == "none":
        remedy = "{kind: truncate, level: sequence, high: 2.0}" if exact else "{kind: truncate, high: 2.0}"
        yield (
            f"cluster.max_staleness: {recipe.cluster.max_staleness}, but nothing corrects for the older weights that "
            f"sampled; write {where}: {remedy}"
        )


def _shaping(recipe: Recipe) -> Iterator[str]:
    if not recipe.verifier.options.get("shaping") or not any(isinstance(stage, RlStage) for stage in recipe.stages):
        return
    if isinstance(recipe.objective, RltfObjective):
        yield "verifier.options.shaping: objective 'rltf' credits its turns by the outcome alone; leave it out"
    elif recipe.rollout.group_size == 1:
        yield "verifier.options.shaping: is centred on its group, of which rollout.group_size 1 leaves nothing"


def _lora(recipe: Recipe) -> Iterator[str]:
    lora = recipe.learner.lora
    if lora is None:
        return
    if recipe.stages and all(isinstance(stage, SftStage) for stage in recipe.stages):
        yield "learner.lora: is for stages of kind 'rl' and 'offline'; SFT trains all weights; leave the section out"
    if lora.dropout and any(isinstance(stage, RlStage) for stage in recipe.stages):
        yield (
            f"learner.lora.dropout: {lora.dropout}; with dropout the learner's log-probs in training are not those of "
            "the policy that sampled; write dropout: 0.0"
        )
    named = [] if isinstance(lora.target_modules, str) else lora.target_modules
    for name in named:
        if name.rpartition(".")[2] in _OUTSIDE_LORA:
            yield f"learner.lora.target_modules: '{name}' cannot have an adapter; name layers within the blocks"


CHECKS = (_switches, _correction, _shaping, _lora)
