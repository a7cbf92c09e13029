"""Every wrong version is rejected by its own family's tests."""

from __future__ import annotations

import importlib
from pathlib import Path

import ledger
import pytest
from mutation import Mutant, hunt

FAMILIES = sorted(path.stem for path in (Path(__file__).parent / "mutants").glob("[a-z]*.py"))
CASES = [
    # one process a family, where processes share the work: a family is hunted once
    pytest.param(family, mutant, id=f"{family}: {mutant.name}", marks=pytest.mark.xdist_group(f"mutants of {family}"))
    for family in FAMILIES
    for mutant in importlib.import_module(f"mutants.{family}").MUTANTS
]


@pytest.mark.parametrize(("family", "mutant"), CASES)
def test_mutant_is_killed(family: str, mutant: Mutant) -> None:
    killer = hunt(family)[mutant.name]
    module = importlib.import_module(f"mutants.{family}")
    ledger.mutants[module.FAMILY][mutant.name] = killer is not None
    assert killer, f"{module.TESTS} accept a wrong version of {mutant.target}: {mutant.why}"
