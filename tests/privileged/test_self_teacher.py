"""The self-teacher's pass: the other context lines up, equal contexts give zero, its length changes no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from rlkd.errors import NumericsError, TeacherError
from rlkd.learner.comparison import HiddenComparison, Measure
from rlkd.learner.loss import Denominators, build_loss
from rlkd.learner.packing import MicroBatch, pack
from rlkd.learner.policy import PackedPolicy
from rlkd.learner.privileged_loss import DistributionLoss
from rlkd.learner.teaching import SelfTeaching, Teaching, other_context, parts
from rlkd.recipe import Recipe
from rlkd.recipe.coefficients import ConstantCoef
from rlkd.recipe.objectives import OpsdObjective
from rlkd.recipe.privileged import SelfTeacher
from rlkd.records import TrainRow

MEASURES = [
    Measure("forward_kl"),
    Measure("forward_kl", clip=0.05),
    Measure("reverse_kl"),
    Measure("jensen_shannon", mixture_weight=0.5),
]


def _compared(policy: PackedPolicy, rows: list[TrainRow], measure: Measure, teacher: SelfTeaching) -> torch.Tensor:
    batch = tiny.batch_of(rows)
    other, positions = other_context(batch)
    assert other is not None
    view = HiddenComparison(measure, teacher.hidden(other), positions, teacher.head)
    found = policy(batch, against=[view]).divergence
    assert found is not None
    return torch.as_tensor(found)


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_divergence_of_two_contexts_equals_the_plain_one(measure: Measure) -> None:
    policy, rows = tiny.model(), tiny.two_context_rows()
    found = _compared(policy, rows, measure, tiny.teacher_of(policy))
    batch = tiny.batch_of(rows)
    at = 0
    for row in batch.rows:
        assert row.teacher_prompt_ids is not None
        ls = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
        lt = tiny.plain_logits(policy, row.teacher_prompt_ids, row.completion_ids).log_softmax(-1)
        if measure.kind == "forward_kl":
            summands = lt.exp() * (lt - ls)
        elif measure.kind == "reverse_kl":
            summands = ls.exp() * (ls - lt)
        else:
            mid = ((lt.exp() + ls.exp()) / 2).log()
            summands = (lt.exp() * (lt - mid) + ls.exp() * (ls - mid)) / 2
        wanted = summands.clamp(max=measure.clip).sum(-1)
        torch.testing.assert_close(found[at : at + len(wanted)], wanted, rtol=1e-5, atol=1e-7)
        at += len(wanted)
    assert at == len(found)


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_equal_contexts_give_exactly_zero(measure: Measure) -> None:
    policy = tiny.model()
    rows = tiny.with_other_prompt(tiny.two_context_rows(), lambda row: row.prompt_ids)
    found = _compared(policy, rows, measure, tiny.teacher_of(policy))
    if measure.kind == "jensen_shannon":  # its mixture is rounded: half a unit in the last place of each summand
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)
    else:
        assert bool((found == 0).all())


def test_student_gradient_does_not_depend_on_how_the_teachers_context_is_long() -> None:
    """The same teacher distributions from a context of another length: the gradient must be the same to the bit."""
    policy, rows = tiny.model(), tiny.two_context_rows()
    teacher = tiny.teacher_of(policy)
    batch = tiny.batch_of(rows)
    other, positions = other_context(batch)
    assert other is not None
    known = teacher.hidden(other)
    found = []
    for padding in ((5,) * 12, (5,) * 150):
        longer = [replace(row, teacher_prompt_ids=(row.teacher_prompt_ids or ()) + padding) for row in rows]
        batch = tiny.batch_of(longer)
        again, places = other_context(batch)
        assert again is not None
        assert torch.equal(places, positions)
        view = HiddenComparison(Measure("forward_kl"), known, places, teacher.head)
        found.append(tiny.gradient(policy, partial(_total, policy, batch, view)))
    assert torch.equal(found[0], found[1])


def _total(policy: PackedPolicy, batch: MicroBatch, view: HiddenComparison) -> torch.Tensor:
    return torch.as_tensor(policy(batch, against=[view]).divergence.sum())


def test_teacher_is_data_and_in_eval_mode() -> None:
    policy = tiny.model()
    policy.model.config.attention_dropout = 0.5
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy.train()
    teacher = tiny.teacher_of(policy)
    other, _ = other_context(tiny.batch_of(tiny.two_context_rows()))
    assert other is not None
    first, second = teacher.hidden(other), teacher.hidden(other)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert policy.training


def test_parts_of_bounded_size_change_nothing() -> None:
    policy, rows = tiny.model(), tiny.two_context_rows(groups=6)
    other, _ = other_context(tiny.batch_of(rows))
    assert other is not None
    whole = tiny.teacher_of(policy).hidden(other)
    bounded = tiny.teacher_of(policy, budget=30).hidden(other)
    torch.testing.assert_close(bounded, whole, rtol=1e-6, atol=1e-8)


def test_a_large_group_is_cut_for_the_teacher() -> None:
    """The teacher's prompt is longer than the policy's: a group that fits the policy's pass may not fit here."""
    rows = tiny.two_context_rows(groups=1, size=6)
    other, _ = other_context(tiny.batch_of(rows))
    assert other is not None
    longest = max(len(row.prompt_ids) + len(row.completion_ids) for row in other.rows)
    cut = list(parts(other, longest))
    assert len(cut) > 1
    assert all(len(part.input_ids) <= longest for part in cut)
    assert [row for part in cut for row in part.rows] == list(other.rows)


def test_a_rank_with_less_to_teach_joins_the_passes_of_the_others() -> None:
    """Passes are counted where they are made; the rank that has most makes three."""
    policy = tiny.model()
    made: list[int] = []

    def forward(part: MicroBatch, **options: bool) -> Any:
        made.append(len(part.targets))
        return policy(part, **options)

    def teacher(budget: int) -> SelfTeaching:
        return replace(tiny.teacher_of(policy, budget=budget), forward=forward, most=lambda mine: max(mine, 3))

    other, _ = other_context(tiny.batch_of(tiny.two_context_rows(groups=2)))
    assert other is not None
    found = teacher(10_000).hidden(other)
    assert made == [len(other.targets), 1, 1]  # one of its own
    assert torch.equal(found, tiny.teacher_of(policy).hidden(other))
    made.clear()
    assert not len(teacher(10_000).logprobs(None))  # nothing of its own
    assert made == [1, 1, 1]
    made.clear()
    rows = tiny.two_context_rows(groups=5)
    other, _ = other_context(tiny.batch_of(rows))
    assert other is not None
    teacher(1).hidden(other)  # it has most: a pass for each row
    assert len(made) == len(rows)
    assert sum(made) == len(other.targets)


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "opsd"},
        {"kind": "opsd", "divergence": "sampled"},
        {"kind": "pi_distill", "kl_in": "loss", "teacher_share": {"kind": "constant", "value": 0.4}},
    ],
)
def test_every_micro_batch_asks_the_teacher_whether_it_is_taught_padded_or_neither(
    make_recipe: Callable[..., Recipe], objective: dict[str, Any]
) -> None:
    """The ranks' questions "who has most?" and their passes have to come in the same order everywhere."""
    teacher = {"kind": "self", "weights": "live"} if objective["kind"] == "opsd" else None
    recipe = make_recipe(objective=objective, teacher=teacher)
    policy = tiny.model()
    asked: list[int] = []

    def most(mine: int) -> int:
        asked.append(mine)
        return max(mine, 1)

    def passes(part: MicroBatch, **options: bool) -> Any:
        kinds.append(bool(options.get("hidden_only")))
        return policy(part, **options)

    kinds: list[bool] = []
    own = replace(tiny.teacher_of(policy), forward=passes, most=most)
    teaching = Teaching(recipe, own, {})
    rows = tiny.two_context_rows(groups=1)
    teaching.compare(tiny.batch_of(rows))
    teaching.compare(tiny.batch_of([replace(row, teacher_prompt_ids=None) for row in rows]))
    teaching.join()
    assert asked == [1, 0, 0]
    assert kinds == [objective.get("divergence") != "sampled"] * 3


def test_rows_without_another_context_are_left_out() -> None:
    policy = tiny.model()
    rows = tiny.two_context_rows(groups=2, size=2)
    rows[1] = replace(rows[1], teacher_prompt_ids=None)
    batch = tiny.batch_of(rows)
    other, positions = other_context(batch)
    assert other is not None
    kept = torch.cat([batch.targets[batch.row == i] for i, row in enumerate(batch.rows) if row.teacher_prompt_ids])
    assert torch.equal(other.targets, kept)
    found = _compared(policy, rows, Measure("forward_kl"), tiny.teacher_of(policy))
    outside = torch.ones(len(found), dtype=torch.bool)
    outside[positions] = False
    assert bool((found[outside] == 0).all())
    assert bool((found[~outside] > 0).all())
    nothing, where = other_context(tiny.batch_of([replace(row, teacher_prompt_ids=None) for row in rows]))
    assert nothing is None
    assert not len(where)


def test_average_moves_by_its_decay_and_survives_a_checkpoint(tmp_path: Path) -> None:
    policy, copy = tiny.model(0), tiny.model(1)
    spec = SelfTeacher(weights="ema", ema_decay=0.75)
    teacher = SelfTeaching(lambda: policy, spec, copy, 1000)
    name = "model.embed_tokens.weight"
    before = copy.model.state_dict()[name].float().clone()
    teacher.after_update(policy.model.state_dict().items())
    wanted = 0.75 * before + 0.25 * policy.model.state_dict()[name].float()
    torch.testing.assert_close(copy.model.state_dict()[name].float(), wanted)
    teacher.save(tmp_path)
    fresh = SelfTeaching(lambda: policy, spec, tiny.model(2), 1000)
    fresh.load(tmp_path)
    assert torch.equal(fresh.average[name], teacher.average[name])
    torch.testing.assert_close(fresh.copy.model.state_dict()[name].float(), wanted)  # type: ignore[union-attr]
    with pytest.raises(TeacherError, match="no moving average"):
        fresh.load(tmp_path / "elsewhere")


def test_loss_is_the_mean_over_taught_tokens_and_micro_batches_add_up() -> None:
    objective = OpsdObjective(clip=None, distill_coef=ConstantCoef(value=2.0))
    policy, rows = tiny.model(), tiny.two_context_rows(groups=4)
    rows = [replace(row, distilled=row.group != 1) for row in rows]
    teacher, loss = tiny.teacher_of(policy), DistributionLoss(objective)
    count = float(sum(len(row.completion_ids) for row in rows if row.distilled))

    def of(part: list[TrainRow]) -> torch.Tensor:
        batch = tiny.batch_of(part)
        other, positions = other_context(batch)
        assert other is not None
        view = HiddenComparison(Measure("forward_kl"), teacher.hidden(other), positions, teacher.head)
        signals = tiny.signals_of(batch, policy, [view])
        return loss(signals, Denominators(policy=1.0, distill=count), 0)[0]

    whole = of(rows)
    by_hand = torch.zeros((), dtype=torch.float64)
    for row in rows:
        if row.distilled:
            ls = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
            lt = tiny.plain_logits(policy, row.teacher_prompt_ids or (), row.completion_ids).log_softmax(-1)
            by_hand = by_hand + (lt.exp() * (lt - ls)).sum()
    torch.testing.assert_close(whole, 2 * by_hand / count, rtol=1e-5, atol=1e-7)
    shares = [of([row for row in rows if row.group == group]) for group in range(4)]
    torch.testing.assert_close(sum(shares, torch.zeros(())), whole, rtol=1e-6, atol=1e-8)
    one, many = (
        tiny.gradient(policy, f) for f in (lambda: of(rows), lambda: sum(map(of, _by_group(rows)), torch.zeros(())))
    )
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-9)


def _two_views(rows: list[TrainRow]) -> list[TrainRow]:
    """As pi-Distill trains them; the row that nothing is distilled into has no second view."""
    taught = [row for row in rows if row.distilled]
    views = [replace(r, prompt_ids=r.teacher_prompt_ids or (), teacher_prompt_ids=r.prompt_ids) for r in taught]
    plain = [replace(row, teacher_prompt_ids=None) for row in rows if not row.distilled]
    return [*views, *plain, *(replace(row, term="bare", index=len(rows) + row.index) for row in taught)]


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({}, list),
        ({"objective__divergence": "jensen_shannon", "objective__mixture_weight": 0.5, "objective__clip": 0.1}, list),
        ({"objective": {"kind": "pi_distill", "kl_in": "loss"}, "teacher": None}, _two_views),
    ],
    ids=["opsd", "opsd, capped", "pi-Distill"],
)
def test_a_training_step_computes_no_distribution_twice(
    make_recipe: Callable[..., Recipe],
    changes: dict[str, Any],
    views: Callable[[list[TrainRow]], list[TrainRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows that the loss weighs alike are those that were announced, also where some rows are not distilled."""
    recipe, policy = make_recipe(**changes), tiny.model()
    rows = views([replace(row, distilled=row.group != 1) for row in tiny.two_context_rows()])
    batch, loss = tiny.batch_of(rows), build_loss(recipe.objective)

    def of(announced: bool) -> torch.Tensor:
        against, _ = Teaching(recipe, tiny.teacher_of(policy), {}).compare(batch)
        assert against and all(isinstance(one, HiddenComparison) and one.weighed_alike is not None for one in against)
        if not announced:
            against = [replace(one, weighed_alike=None) for one in against if isinstance(one, HiddenComparison)]
        return loss(tiny.signals_of(batch, policy, against), Denominators(policy=17.0, distill=13.0), 5)[0]

    want = tiny.gradient(policy, lambda: of(announced=False))
    found = of(announced=True)
    monkeypatch.setattr("rlkd.divergences.chunked._Heads.compute", None)
    torch.testing.assert_close(tiny.gradient(policy, lambda: found), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__reduction": "sequence"},
        {"objective__correction": {"kind": "truncate", "level": "sequence"}},
    ],
    ids=["reduction", "correction"],
)
def test_what_is_not_weighed_alike_is_not_announced(
    make_recipe: Callable[..., Recipe], changes: dict[str, Any]
) -> None:
    teaching = Teaching(make_recipe(**changes), tiny.teacher_of(tiny.model()), {})
    ((found,), _) = teaching.compare(tiny.batch_of(tiny.two_context_rows()))
    assert isinstance(found, HiddenComparison) and found.weighed_alike is None


def _by_group(rows: list[TrainRow]) -> list[list[TrainRow]]:
    return [[row for row in rows if row.group == group] for group in sorted({row.group for row in rows})]


def test_sampled_token_variant_has_the_reverse_kl_gradient_in_expectation() -> None:
    """One token, all V outcomes enumerated: E[grad] must be grad KL(policy || teacher)."""
    policy = tiny.model()
    prompt, other = (3, 5), (7, 9, 11, 2)
    objective = OpsdObjective(divergence="sampled")
    loss = DistributionLoss(objective)
    lt = tiny.plain_logits(policy, other, (0,)).log_softmax(-1).detach()
    ls = tiny.plain_logits(policy, prompt, (0,)).log_softmax(-1).detach()

    def expected() -> torch.Tensor:
        rows = [
            TrainRow(0, prompt, (token,), (float(ls[0, token]),), 0.0, token, teacher_prompt_ids=other)
            for token in range(tiny.VOCAB)
        ]
        batch = tiny.batch_of(rows)
        order = [row.completion_ids[0] for row in batch.rows]
        signals = tiny.signals_of(batch, policy)
        signals = replace(signals, teacher_logprobs=lt[0, order][:, None])
        # weight each outcome by its probability: through the mask's own rows, one at a time
        total = torch.zeros((), dtype=torch.float64)
        for index, token in enumerate(order):
            mask = torch.zeros_like(signals.response_mask)
            mask[index] = True
            part, _ = loss(replace(signals, response_mask=mask), Denominators(1.0, 1.0), 0)
            total = total + ls[0, token].exp() * part
        return total

    def exact() -> torch.Tensor:
        mine = tiny.plain_logits(policy, prompt, (0,)).log_softmax(-1)
        return (mine.exp() * (mine - lt)).sum()

    torch.testing.assert_close(tiny.gradient(policy, expected), tiny.gradient(policy, exact), rtol=1e-4, atol=1e-7)


def test_clip_is_reported_and_a_missing_comparison_is_an_error() -> None:
    policy, rows = tiny.model(), tiny.two_context_rows()
    batch = tiny.batch_of(rows)
    other, positions = other_context(batch)
    assert other is not None
    teacher = tiny.teacher_of(policy)
    view = HiddenComparison(Measure("forward_kl", clip=1e-3), teacher.hidden(other), positions, teacher.head)
    signals = tiny.signals_of(batch, policy, [view])
    _, figures = DistributionLoss(OpsdObjective())(signals, Denominators(1.0, 1.0), 0)
    total, count = figures["clipped_share"]
    assert 0 < float(total / count) < 1
    assert math.isfinite(float(figures["divergence"][0]))
    with pytest.raises(NumericsError, match="compared with a teacher"):
        DistributionLoss(OpsdObjective())(tiny.signals_of(batch, policy), Denominators(1.0, 1.0), 0)


def test_a_pack_in_another_order_is_refused() -> None:
    rows = tiny.two_context_rows(groups=1, size=2)
    batch = pack([rows])
    broken = replace(batch, targets=batch.targets.flip(0))
    with pytest.raises(NumericsError, match="different completion tokens"):
        other_context(broken)
