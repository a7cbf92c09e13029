"""Signals, denominators and shares: nothing is lost, nothing counted twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rollout_groups import group

from reward.verdict import Verdict
from rlkd.recipe import Recipe, validate_recipe
from rlkd.recipe.schema import RlStage
from rlkd.trainer.assemble import Judged, advantages, denominators, plan_updates, train_rows
from rlkd.trainer.context import Run
from rlkd.trainer.rl import RlTrainer

RIGHT, WRONG, LOST = Verdict.right("1"), Verdict.wrong("2"), Verdict.abstain("error")


def changed(recipe: Recipe, **sections: object) -> Recipe:
    raw = recipe.model_dump(mode="json")
    for dotted, value in sections.items():
        node = raw
        *path, last = dotted.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return validate_recipe(raw, where="test")


def judged(verdicts: list[Verdict], *, size: int = 4, version: int = 3, **options: object) -> Judged:
    groups = [group(str(g), [2, 3, 1, 4][:size], version=2, **options) for g in range(len(verdicts) // size)]  # type: ignore[arg-type]
    teacher = [[-0.1] * len(r.completion_ids) for g in groups for r in g.rollouts]
    return Judged(groups, verdicts, teacher, version)


def test_group_advantages_are_centred_and_scaled(recipe: Recipe) -> None:
    plain = changed(recipe, advantage={"kind": "group", "baseline": "mean", "scale": "none"})
    assert advantages(plain, judged([RIGHT, WRONG, WRONG, WRONG])) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    loo = changed(recipe, advantage={"kind": "group", "baseline": "leave_one_out", "scale": "none"})
    assert advantages(loo, judged([RIGHT, WRONG, WRONG, WRONG])) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


def test_an_abstained_rollout_leaves_the_baseline(recipe: Recipe) -> None:
    plain = changed(recipe, advantage={"kind": "group", "baseline": "mean", "scale": "none"})
    assert advantages(plain, judged([RIGHT, WRONG, LOST, LOST])) == pytest.approx([0.5, -0.5, 0.0, 0.0])


def test_shaping_is_added_after_the_outcome_is_normalised(recipe: Recipe) -> None:
    """An all-wrong group gets no phantom advantage of full size from a mild length term."""
    short = Verdict(0.0, "2", "wrong", shaping={"length": 0.01})
    found = advantages(recipe, judged([short, WRONG, WRONG, WRONG]))
    assert max(abs(value) for value in found) < 0.01


def test_abstained_rollouts_are_not_trained_by_grpo_but_taught_by_kdrl(recipe: Recipe) -> None:
    grpo = changed(recipe, objective={"kind": "grpo"})
    verdicts = [RIGHT, WRONG, LOST, WRONG]
    assert [row.trained for row in train_rows(grpo, judged(verdicts))] == [True, True, False, True]
    rows = train_rows(recipe, judged(verdicts))
    assert [row.trained for row in rows] == [True] * 4
    assert rows[2].advantage == 0.0


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ("none", [True] * 8),
        ("response", [False, True, True, True, True, True, True, True]),
        ("group", [False, False, False, False, True, True, True, True]),
    ],
)
def test_reward_guided_masks_are_keyed_on_correctness(recipe: Recipe, mask: str, kept: list[bool]) -> None:
    masked = changed(recipe, objective__mask=mask)
    rows = train_rows(masked, judged([RIGHT, WRONG, WRONG, WRONG, WRONG, LOST, WRONG, WRONG]))
    assert [row.distilled for row in rows] == kept


def test_truncated_completions_are_masked_by_recipe(recipe: Recipe) -> None:
    cut = judged([WRONG] * 4, finish="length")
    assert all(row.trained for row in train_rows(recipe, cut))
    assert not any(row.trained for row in train_rows(changed(recipe, rollout__truncated="mask"), cut))


@pytest.mark.parametrize(("reduction", "expected"), [("token", 10.0), ("sequence", 4.0), ("constant", 4.0 * 48)])
def test_denominators_count_what_is_trained(recipe: Recipe, reduction: str, expected: float) -> None:
    reduced = changed(recipe, objective__reduction=reduction)
    assert denominators(reduced, train_rows(reduced, judged([RIGHT, WRONG, WRONG, WRONG]))).policy == expected


def test_distill_denominator_counts_kept_rows_only(recipe: Recipe) -> None:
    masked = changed(recipe, objective__mask="response")
    found = denominators(masked, train_rows(masked, judged([RIGHT, WRONG, WRONG, WRONG])))
    assert (found.policy, found.distill) == (10.0, 8.0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_every_row_reaches_exactly_one_rank_and_update(recipe: Recipe, ranks: int, updates: int) -> None:
    several = changed(recipe, learner__updates_per_step=updates)
    rows = train_rows(several, judged([RIGHT, WRONG, WRONG, WRONG] * 5))
    shares = plan_updates(several, rows, ranks=ranks)
    found = sorted(row.index for share in shares for update in share for row in update.rows)
    assert found == list(range(20))
    for index in range(updates):
        passes = {share[index].micro_batches for share in shares}
        totals = {share[index].denominators for share in shares}
        assert len(passes) == 1, "ranks must run the same number of passes"
        assert len(totals) == 1, "denominators are global"
    for share in shares:
        for update in share:
            groups = [row.group for row in update.rows]
            assert all(groups.count(g) == 4 for g in groups), "a group stays on one rank"


def test_staleness_is_the_lag_of_the_oldest_token(recipe: Recipe) -> None:
    assert {row.staleness for row in train_rows(recipe, judged([RIGHT] * 4, version=3))} == {1}


def test_tokens_count_as_trained_where_their_row_is(
    recipe: Recipe, tmp_path: Path, engineless_run: Callable[[Recipe, Path], Run]
) -> None:
    """Every completion was generated; of two that abstained nothing is trained."""
    grpo = changed(recipe, objective={"kind": "grpo"})
    run = engineless_run(grpo, tmp_path)
    run.rollouts = SimpleNamespace(replaced=0)  # type: ignore[assignment]
    trainer = RlTrainer(run, RlStage(name="stage", steps=1), tmp_path, {}, tmp_path)
    step = judged([RIGHT, LOST, WRONG, LOST])  # of 2, 3, 1 and 4 tokens
    found = trainer._throughput(step, train_rows(grpo, step), 2.0, further=5)
    assert (found["tokens"], found["tokens_per_s"]) == (15, 7.5)
    assert run.tokens == {"generated": 15, "trained": 3}
