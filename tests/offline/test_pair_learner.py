"""Row by row, in whatever micro-batches, the learner takes the gradient of the published pair losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlkd.learner.pairs import pair_slopes, rejected_weight, row_loss
from rlkd.recipe.offline import DpoObjective, PairSftObjective, RediObjective, SimpoObjective, SymmetricObjective
from rlkd.records import TrainRow


@pytest.mark.engine
def test_learner_gradients_equal_the_pair_form(tmp_path: Path) -> None:
    """Real DeepSpeed, float32; cut pairs (a row a micro-batch) and whole ones; the reference stays where it was."""
    command = [sys.executable, str(Path(__file__).with_name("pair_job.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    assert len(found) == 10
    for case, figures in found.items():
        assert figures["gradient"] < 1e-6, (case, figures)
        assert figures["size"] > 1e-3, (case, figures)  # there is something to agree on
        assert figures["loss"] < 1e-6, (case, figures)
        assert figures["right"] < 1e-6, (case, figures)
        assert figures["moved"] > 1e-3, (case, figures)
        rows = 4 if case.startswith("sft") else 8  # wrong traces that are not trained cost no pass
        assert figures["passes"] == (rows if case.endswith(" 1") else 1)


def rows(pairs: int) -> list[TrainRow]:
    """Pairs whose rows lie apart: all right ones first."""
    return [
        TrainRow(group, (1,), (2,), (), 0.0, index, term=term)  # type: ignore[arg-type]
        for index, (term, group) in enumerate((term, group) for term in ("right", "wrong") for group in range(pairs))
    ]


def test_dpo_slopes_by_hand() -> None:
    """d/d right of -log sigmoid(b m) is -b sigmoid(-b m), for each pair by its own margin; wrong is its negative."""
    scores, reference = {0: -3.0, 1: -9.0, 2: -5.0, 3: -4.0}, {0: -4.0, 1: -8.0, 2: -4.0, 3: -6.0}
    slopes, value = pair_slopes(DpoObjective(inverse_temperature=0.5), rows(2), scores, reference)
    margins = torch.tensor([(-3.0 + 4.0) - (-5.0 + 4.0), (-9.0 + 8.0) - (-4.0 + 6.0)], dtype=torch.float64)
    expected = (-0.5 * torch.sigmoid(-0.5 * margins)).tolist()
    assert [slopes[0], slopes[1]] == pytest.approx(expected, abs=1e-12)
    assert [slopes[2], slopes[3]] == pytest.approx([-each for each in expected], abs=1e-12)
    assert value == pytest.approx(float(-torch.nn.functional.logsigmoid(0.5 * margins).sum()), abs=1e-12)


def test_simpo_slopes_by_hand() -> None:
    scores = {0: -0.3, 1: -0.5}
    slopes, _ = pair_slopes(SimpoObjective(inverse_temperature=2.0, margin=1.0), rows(1), scores, None)
    expected = -2.0 * float(torch.sigmoid(torch.tensor(-(2.0 * 0.2 - 1.0), dtype=torch.float64)))
    assert slopes[0] == pytest.approx(expected, abs=1e-12)
    assert slopes[1] == pytest.approx(-expected, abs=1e-12)


def test_alpha_of_each_objective() -> None:
    found = [rejected_weight(each) for each in (RediObjective(), SymmetricObjective(), PairSftObjective())]
    assert found == [0.8, 1.0, 0.0]


def test_reweighting_reaches_the_loss() -> None:
    """A wrong row is weighted by exp(gamma x its mean log-prob): here exp(2 x -1.5)."""
    logprobs, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = row_loss(
        RediObjective(rejected_weight=0.5, reweighting=2.0),
        policy_logprobs=logprobs,
        response_mask=mask,
        rejected=torch.tensor([True]),
        slopes=torch.zeros(1),
        pairs=1.0,
    )
    assert float(loss) == pytest.approx(0.5 * float(torch.tensor(-3.0).exp()) * -1.5, rel=1e-6)
