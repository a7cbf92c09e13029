"""Wrong versions of functions, made from their own source, and a check that a family's tests notice each."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import ledger
import pytest
from _pytest.runner import runtestprotocol

ANNOTATIONS = 0x1000000  # the compiler flag of `from __future__ import annotations`


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the source of ``target`` ("module:function" under rlkd); ``why`` it is wrong."""

    target: str
    old: str
    new: str
    why: str

    @property
    def name(self) -> str:
        return f"{self.target.split(':')[1]}: {self.why}"


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Swap the function's code in place, so that whoever holds the function runs the wrong version."""
    module_name, path = mutant.target.split(":")
    module = importlib.import_module(f"rlkd.{module_name}")
    function = inspect.unwrap(functools.reduce(getattr, path.split("."), module))  # type: ignore[arg-type]
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]  # decorators stay as they are
    body_start = source.index('"""', source.index('"""') + 3) if '"""' in source else 0
    assert source.count(mutant.old, body_start) == 1, f"{mutant.name}: '{mutant.old}' must occur exactly once"
    wrong = source[:body_start] + source[body_start:].replace(mutant.old, mutant.new)
    compiled = compile(wrong, f"<mutant of {mutant.target}>", "exec", flags=ANNOTATIONS, dont_inherit=True)
    code = next(c for c in compiled.co_consts if isinstance(c, CodeType) and c.co_name == function.__name__)
    right, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = right


class Hunt:
    """A pytest plugin that runs the collected tests once a mutant, up to the first failure."""

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants = mutants
        self.killer: dict[str, str | None] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for mutant in self.mutants:
            with planted(mutant):
                self.killer[mutant.name] = next((item.nodeid for item in session.items if _fails(item)), None)
        return True


def _fails(item: pytest.Item) -> bool:
    item._initrequest()  # type: ignore[attr-defined]  # fresh fixtures, since the item has run before
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


@functools.cache
def hunt(family: str) -> dict[str, str | None]:
    """Name of each of a family's mutants -> the first of the family's tests that noticed it, or None."""
    module = importlib.import_module(f"mutants.{family}")
    paths = [str(Path(__file__).parent / file) for file in module.TESTS]
    off = [option for name in ("terminal", "cacheprovider", "xdist", "logging") for option in ("-p", f"no:{name}")]
    plugin = Hunt(module.MUTANTS)
    ledger.booking = False
    try:
        pytest.main(["-o", "addopts=", "-W", "ignore", *off, *paths], plugins=[plugin])
    finally:
        ledger.booking = True
    unplanted = [mutant.name for mutant in module.MUTANTS if mutant.name not in plugin.killer]
    assert not unplanted, f"{family}: could not plant {unplanted[0]}"  # its text isn't there once, or isn't Python
    return plugin.killer
