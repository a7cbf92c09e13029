"""A recipe's objective, composed: the teacher matters, masks select, denominators are global."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rlkd.learner.loss import Denominators, Signals, build_loss, coefficient
from rlkd.learner.privileged_loss import ContextSignals
from rlkd.recipe.coefficients import CoefSchedule, LinearCoef, always_zero
from rlkd.recipe.objectives import (
    AnnealedCoef,
    ConstantCoef,
    DistillObjective,
    GrpoObjective,
    ImportanceCorrection,
    KdrlObjective,
    OpdObjective,
    OpsdObjective,
    SwitchedCoef,
)

ALWAYS = ConstantCoef(value=0.7)
KINDS: list[GrpoObjective | KdrlObjective | DistillObjective] = [
    GrpoObjective(),
    GrpoObjective(reduction="sequence"),
    GrpoObjective(reduction="constant"),
    GrpoObjective(ratio="sequence", reduction="sequence"),
    GrpoObjective(kl_coef=0.1),
    GrpoObjective(correction=ImportanceCorrection(kind="truncate", level="sequence")),
    GrpoObjective(correction=ImportanceCorrection(kind="mask", low=0.5, high=2.0)),
    KdrlObjective(distill_coef=ALWAYS),
    KdrlObjective(distill_coef=ALWAYS, form="advantage"),
    KdrlObjective(distill_coef=ALWAYS, estimator="k3"),
    DistillObjective(),
]
TEACHER = [kind for kind in KINDS if kind.kind != "grpo"]


def signals(rows: int = 6, width: int = 5, *, seed: int = 0) -> Signals:
    draw = torch.Generator().manual_seed(seed)

    def logprobs() -> Tensor:
        return -torch.rand(rows, width, dtype=torch.float64, generator=draw) * 2

    policy = logprobs()
    lengths = torch.tensor([width, 1, 3, 2, width, 4])[:rows]
    return Signals(
        policy_logprobs=policy.requires_grad_(),
        proximal_logprobs=policy.detach() + 0.05 * logprobs(),
        rollout_logprobs=policy.detach() + 0.02 * logprobs(),
        advantages=torch.randn(rows, 1, dtype=torch.float64, generator=draw).expand(rows, width),
        response_mask=torch.arange(width)[None] < lengths[:, None],
        distill_rows=torch.ones(rows, dtype=torch.bool),
        teacher_logprobs=logprobs(),
        reference_logprobs=logprobs(),
    )


def totals(kind: object, given: Signals) -> Denominators:
    reduction = getattr(kind, "reduction", "token")
    tokens, rows = float(given.response_mask.sum()), float(given.response_mask.any(1).sum())
    number = {"token": tokens, "sequence": rows, "constant": rows * 5}[reduction]
    return Denominators(policy=number, distill=number)


def gradient(kind: object, given: Signals, denominators: Denominators | None = None) -> Tensor:
    loss, _ = build_loss(kind)(given, denominators or totals(kind, given), 0)  # type: ignore[arg-type]
    return torch.autograd.grad(loss, given.policy_logprobs)[0]


@pytest.mark.parametrize("kind", TEACHER, ids=str)
def test_swapping_the_teacher_changes_the_gradient(kind: object) -> None:
    given = signals()
    assert given.teacher_logprobs is not None
    other = dataclasses.replace(given, teacher_logprobs=given.teacher_logprobs.flip(0))
    assert (gradient(kind, given) - gradient(kind, other)).abs().max() > 1e-3


def test_a_teacher_equal_to_the_policy_pulls_nowhere() -> None:
    given = signals()
    same = dataclasses.replace(given, teacher_logprobs=given.policy_logprobs.detach())
    assert gradient(DistillObjective(), same).abs().max() == 0
    kdrl, grpo = KdrlObjective(distill_coef=ALWAYS), GrpoObjective()
    assert torch.equal(gradient(kdrl, same), gradient(grpo, same))


@pytest.mark.parametrize(
    "correction", [ImportanceCorrection(), ImportanceCorrection(kind="truncate", high=1.01)], ids=str
)
def test_joint_k2_equals_additive_advantage_on_policy(correction: ImportanceCorrection) -> None:
    """Trap 2: with one on-policy update and one normaliser the two forms have the same gradient, corrected or not."""
    given = signals()
    given = dataclasses.replace(given, proximal_logprobs=given.policy_logprobs.detach())
    joint = KdrlObjective(distill_coef=ALWAYS, correction=correction)
    additive = KdrlObjective(distill_coef=ALWAYS, form="advantage", correction=correction)
    torch.testing.assert_close(gradient(joint, given), gradient(additive, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reward_coef", [0.0, 0.3])
@pytest.mark.parametrize("objective", [OpsdObjective, OpdObjective])
def test_the_pull_to_the_reference_has_a_weight_of_its_own(
    objective: type[OpsdObjective | OpdObjective], reward_coef: float
) -> None:
    given = ContextSignals(**vars(signals()))

    def pulled(coef: float) -> Tensor:
        return gradient(objective(divergence="sampled", reward_coef=reward_coef, kl_coef=coef), given)

    alone = gradient(GrpoObjective(kl_coef=0.4), given) - gradient(GrpoObjective(), given)
    torch.testing.assert_close(pulled(0.4) - pulled(0.0), alone, rtol=0, atol=1e-12)


def test_the_gap_to_the_teacher_is_of_rows_that_it_scored() -> None:
    """Rows without privileged text have no teacher; what stands in for its log-probs there is no figure."""
    taught = torch.tensor([True, False, True, False, False, True])
    given = ContextSignals(**vars(dataclasses.replace(signals(), distill_rows=taught)))
    assert given.teacher_logprobs is not None
    kind = OpsdObjective(divergence="sampled")
    _, figures = build_loss(kind)(given, totals(kind, given), 0)
    mask = given.response_mask & taught[:, None]
    gap = (given.policy_logprobs - given.teacher_logprobs).detach()[mask]
    total, count = figures["kl_to_teacher"]
    assert float(total) == pytest.approx(float(gap.sum()))
    assert int(count) == len(gap)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_masked_slots_may_hold_anything(kind: object) -> None:
    given = signals()
    junk = torch.where(given.response_mask, 0.0, float("nan")).double()
    policy = (given.policy_logprobs.detach() + junk).requires_grad_()
    changes = {
        name: getattr(given, name) + junk
        for name in ("proximal_logprobs", "rollout_logprobs", "advantages", "teacher_logprobs", "reference_logprobs")
    }
    spoiled = dataclasses.replace(given, policy_logprobs=policy, **changes)
    torch.testing.assert_close(gradient(kind, spoiled, totals(kind, given)), gradient(kind, given), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_micro_batches_add_up(kind: object) -> None:
    given = signals()
    whole = gradient(kind, given)
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        fields = {
            name: value[rows] if name != "policy_logprobs" else value.detach()[rows].requires_grad_()
            for name, value in vars(given).items()
        }
        parts.append(gradient(kind, Signals(**fields), totals(kind, given)))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_zero_variance_groups_keep_the_teacher_signal() -> None:
    given = dataclasses.replace(signals(), advantages=torch.zeros(6, 5, dtype=torch.float64))
    given = dataclasses.replace(given, proximal_logprobs=given.policy_logprobs.detach())
    assert gradient(GrpoObjective(), given).abs().max() == 0
    assert gradient(KdrlObjective(distill_coef=ALWAYS), given).abs().max() > 1e-3


def test_distill_rows_say_where_the_teacher_pulls() -> None:
    given = dataclasses.replace(signals(), distill_rows=torch.tensor([True, False, True, False, True, False]))
    found = gradient(DistillObjective(), given, Denominators(policy=1.0, distill=1.0))
    assert found[1::2].abs().max() == 0
    assert found[0::2].abs().max() > 0


def test_coefficients_follow_the_recipe() -> None:
    paper = AnnealedCoef(start=5e-3, end=1e-3, delta=5e-5)
    assert [coefficient(paper, step) for step in (0, 40, 80, 280)] == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3])
    assert [coefficient(SwitchedCoef(value=0.3, at=60), step) for step in (59, 60)] == [0.3, 0.0]
    assert coefficient(ALWAYS, 7) == 0.7


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantCoef(value=0.0),
        ConstantCoef(value=0.1),
        SwitchedCoef(value=0.3, at=0),
        SwitchedCoef(value=0.3, at=1),
        SwitchedCoef(value=0.0, at=5),
        AnnealedCoef(start=0.0, end=0.0, delta=0.1),
        AnnealedCoef(start=0.1, end=0.0, delta=0.1),
        LinearCoef(start=0.0, end=0.0, steps=3),
        LinearCoef(start=0.0, end=0.2, steps=3),
        LinearCoef(start=0.2, end=0.0, steps=3),
    ],
    ids=repr,
)
def test_a_term_is_left_out_only_if_no_step_weighs_it(schedule: CoefSchedule) -> None:
    assert always_zero(schedule) == all(coefficient(schedule, step) == 0 for step in range(8))


def figure(kind: object, given: Signals, name: str) -> float:
    _, stats = build_loss(kind)(given, totals(kind, given), 0)  # type: ignore[arg-type]
    return float(stats[name][0] / stats[name][1])


@pytest.mark.parametrize(("ratio", "dual_clip"), [("token", None), ("token", 1.01), ("sequence", None)])
def test_clip_fraction_is_the_share_of_tokens_without_a_gradient(ratio: str, dual_clip: float | None) -> None:
    """Of the sequence's ratio where that is clipped, and only on the side that the advantage pulls to."""
    given = signals()
    kind = GrpoObjective(ratio=ratio, clip_low=0.02, clip_high=0.02, dual_clip=dual_clip)  # type: ignore[arg-type]
    still = (gradient(kind, given) == 0) & given.response_mask
    assert 0 < int(still.sum()) < int(given.response_mask.sum())
    assert figure(kind, given, "clip_fraction") == pytest.approx(float(still.sum() / given.response_mask.sum()))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_whole_vocabulary_divergence_is_weighted_by_what_led_to_it(level: str) -> None:
    """Its own token's ratio changes nothing; the tokens before it do."""
    given = ContextSignals(**vars(signals()), divergence=signals().policy_logprobs.square())
    assert given.divergence is not None
    spec = ImportanceCorrection(kind="truncate", level=level, high=1e6)  # type: ignore[arg-type]
    plain = OpdObjective(divergence="forward_kl")
    (weighted,) = torch.autograd.grad(
        build_loss(plain.model_copy(update={"correction": spec}))(given, totals(plain, given), 0)[0], given.divergence
    )
    drift = ((given.proximal_logprobs - given.rollout_logprobs) * given.response_mask).detach()
    before = (drift.cumsum(1) - drift).exp() if level == "sequence" else torch.ones_like(drift)
    scale = weighted[0, 0]
    torch.testing.assert_close(weighted, scale * before * given.response_mask)
