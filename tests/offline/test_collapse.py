"""A collapse is both log-probs falling off together with a spiking norm, and nothing else is."""

from __future__ import annotations

import random

import pytest

from rlkd.errors import CollapseError
from rlkd.recipe.offline import CollapseSpec
from rlkd.trainer.collapse import Collapse, CollapseDetector, Figures

SPEC = CollapseSpec()
CALM = 60  # updates before anything happens


def noisy(right: float, wrong: float, norm: float, draw: random.Random) -> Figures:
    """Batches differ: a tenth of a nat, and norms by up to half."""
    return right + draw.gauss(0, 0.05), wrong + draw.gauss(0, 0.05), norm * draw.uniform(0.7, 1.5)


def found(rows: list[Figures], spec: CollapseSpec = SPEC) -> list[Collapse]:
    detector = CollapseDetector(spec)
    return [event for step, row in enumerate(rows, 1) if (event := detector.update(step, row))]


def calm(draw: random.Random) -> list[Figures]:
    return [noisy(-0.4, -0.6, 1.0, draw) for _ in range(CALM)]


def collapsing(draw: random.Random) -> list[Figures]:
    """Both fall ever faster, as in the paper's symmetric run, and the norm goes up tenfold."""
    return calm(draw) + [
        noisy(-0.4 - 0.05 * t**1.5, -0.6 - 0.1 * t**1.5, min(10.0, 1.0 + 0.7 * t), draw) for t in range(20)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_collapse_is_found_once_and_soon(seed: int) -> None:
    events = found(collapsing(random.Random(seed)))
    assert len(events) == 1
    assert CALM < events[0].step <= CALM + 12
    right, wrong, norm = events[0].right, events[0].wrong, events[0].norm
    assert right[1] < right[0] - SPEC.fall and wrong[1] < wrong[0] - SPEC.fall and norm[1] > SPEC.spike * norm[0]


@pytest.mark.parametrize("updates", [20, 50, 100, 400, 1600])
@pytest.mark.parametrize("seed", range(3))
def test_a_collapse_is_found_at_any_speed(updates: int, seed: int) -> None:
    """Three nats and a tenfold norm, over a hundredth of a paper's run or all of it."""
    draw = random.Random(seed)
    rows = calm(draw)
    for t in range(updates):
        part = t / updates
        rows.append(noisy(-0.4 - 3 * part, -0.6 - 3 * part, 1 + 9 * part, draw))
    assert found(rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_decline_is_benign(seed: int) -> None:
    draw = random.Random(seed)
    rows = calm(draw) + [noisy(-0.4 - 0.004 * t, -0.6 - 0.008 * t, 1.0, draw) for t in range(400)]
    assert rows[-1][0] < -1.5  # a long way down in the end
    assert found(rows) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_single_spike_is_no_collapse(seed: int) -> None:
    draw = random.Random(seed)
    rows = calm(draw)
    rows[40] = (-3.0, -4.0, 50.0)  # one bad batch in every figure
    assert found(rows) == []


def test_wrong_traces_alone_may_fall() -> None:
    draw = random.Random(0)
    rows = calm(draw) + [noisy(-0.4, -0.6 - 0.2 * t, 6.0, draw) for t in range(20)]
    assert found(rows) == []


def test_a_fall_without_a_spike_is_no_collapse() -> None:
    draw = random.Random(0)
    rows = calm(draw) + [noisy(-0.4 - 0.1 * t, -0.6 - 0.1 * t, 1.0, draw) for t in range(20)]
    assert found(rows) == []


def test_off_watches_nothing() -> None:
    assert found(collapsing(random.Random(0)), CollapseSpec(action="off")) == []


def test_it_goes_on_from_a_checkpoint_as_if_never_stopped() -> None:
    rows = collapsing(random.Random(3))
    whole = found(rows)
    for cut in (CALM - 1, CALM + 3, whole[0].step, whole[0].step + 2):
        first = CollapseDetector(SPEC)
        events = [event for step, row in enumerate(rows[:cut], 1) if (event := first.update(step, row))]
        second = CollapseDetector(SPEC)
        second.restore(**first.state())  # type: ignore[arg-type]
        events += [event for step, row in enumerate(rows[cut:], cut + 1) if (event := second.update(step, row))]
        assert events == whole
        assert second.found == 1


def test_stopping_says_what_to_write() -> None:
    error = found(collapsing(random.Random(0)))[0].error("redi")
    assert isinstance(error, CollapseError)
    for part in ("stages.redi", "collapse at update", "rejected_weight: 0.8", "lower optim.lr", "action: warn"):
        assert part in str(error)
