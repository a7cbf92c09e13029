"""Every shape and dtype annotation of the maths layer is checked while its tests run."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest

jaxtyping.install_import_hook(
    ["rlkd.tensors", "rlkd.divergences", "rlkd.advantages", "rlkd.objectives"], "maths_checker.checker"
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As in production: annotations are not checked, so that bad input meets the functions' own refusals."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=[0, 300, 2**20], ids=["nothing kept", "a few rows kept", "all kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the slopes the forward pass keeps, out of 7 rows of at most 11 entries."""
    monkeypatch.setattr("rlkd.tensors.chunked.KEPT_BYTES", request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    import ledger  # after the hook above, as the tests do

    if ledger.proofs or ledger.mutants or ledger.agreements:
        terminalreporter.section("what was proven")
        for line in ledger.table():
            terminalreporter.write_line(line)
