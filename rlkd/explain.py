"""What stands behind ``rlkd explain``: formula, gradient, source and tests of every function, from its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlkd.errors import RlkdError, did_you_mean
from rlkd.methods import METHODS, Method

PACKAGES = ("rlkd.tensors", "rlkd.divergences", "rlkd.advantages", "rlkd.objectives")
SECTIONS = ("Args", "Returns", "Gradient", "Raises", "Source", "Differs", "Tested")
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True)
class Entry:
    """One public function of the maths packages and its docstring, taken apart."""

    name: str
    module: str
    text: str
    sections: dict[str, str]

    @property
    def summary(self) -> str:
        return self.text.split("\n", 1)[0]

    @property
    def formula(self) -> str:
        """The indented block under the summary line; empty when there is none."""
        head = re.split(rf"^(?:{'|'.join(SECTIONS)}):", self.text, maxsplit=1, flags=re.MULTILINE)[0]
        return "\n".join(line for line in head.splitlines()[1:] if line.startswith("    "))

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(re.findall(r"test_\w+", self.sections.get("Tested", "")))


@dataclass(frozen=True)
class IndexRow:
    """One line of the index: paper -> method -> function -> recipes -> tests."""

    paper: str
    method: str
    function: str
    recipes: tuple[str, ...]
    tests: tuple[str, ...]


def entries() -> dict[str, Entry]:
    """Every public function of the maths packages by name."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isfunction(item):
                text = inspect.cleandoc(item.__doc__ or "")
                found[name] = Entry(name, item.__module__, text, dict(_sections(text)))
    return found


def explain(name: str) -> str:
    """Formula, gradient, source, deviations and tests of a function, an estimator (k1, k2, k3) or a method.

    Raises: RlkdError for an unknown name, with the nearest known one.
    """
    from rlkd.objectives import ESTIMATORS

    key = name.strip().lower().replace("-", "_")
    functions = entries()
    if key in METHODS and key not in functions:
        return _explain_method(METHODS[key], functions)
    if key in functions:
        return _explain_function(functions[key])
    for short, estimator in ESTIMATORS.items():
        if key == short or key in estimator.aliases:
            behind = estimator.loss.__name__ if estimator.loss else "k1_value"
            head = f"{short}: as a value {estimator.value}; as a loss its gradient is {estimator.gradient}"
            return f"{head}\n\n{_explain_function(functions[behind])}"
    known = [*functions, *METHODS, *ESTIMATORS]
    raise RlkdError(f"nothing is called '{name}'{did_you_mean(key, known)}; `rlkd explain` without a name lists all")


def index() -> list[IndexRow]:
    """Paper -> method -> function -> recipe -> test, one row a method and function."""
    functions, used = entries(), recipe_kinds()
    return [
        IndexRow(
            paper=method.paper,
            method=name,
            function=part,
            recipes=tuple(sorted(recipe for recipe, kinds in used.items() if kinds & {*method.kinds})),
            tests=functions[part].tests,
        )
        for name, method in METHODS.items()
        for part in method.parts
    ]


def recipe_kinds(folder: Path = RECIPES) -> dict[str, set[str]]:
    """Each recipe file under ``folder`` -> the values of every `kind:` in it."""
    pattern = re.compile(r"\bkind:\s*[\"']?(\w+)")
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    return {str(file.relative_to(folder)): {*pattern.findall(file.read_text(encoding="utf-8"))} for file in files}


def render_index() -> str:
    """The index as text, a method a paragraph."""
    lines: list[str] = []
    method = ""
    for row in index():
        if row.method != method:
            method = row.method
            recipes = ", ".join(row.recipes) or "-"
            lines += ["", f"{method}  {METHODS[method].title} [{row.paper}]", f"    recipes: {recipes}"]
        lines.append(f"    {row.function}: {', '.join(row.tests)}")
    return "\n".join(lines[1:])


def _sections(text: str) -> Iterator[tuple[str, str]]:
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):", text, flags=re.MULTILINE)
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield title, inspect.cleandoc(body)


def _explain_function(entry: Entry) -> str:
    methods = [name for name, method in METHODS.items() if entry.name in method.parts]
    used = f"\n\nPart of: {', '.join(methods)}" if methods else ""
    return f"{entry.name} ({entry.module})\n\n{entry.text}{used}"


def _explain_method(method: Method, functions: dict[str, Entry]) -> str:
    lines = [f"{method.title} [{method.paper}]", "", method.how]
    for part in method.parts:
        entry = functions[part]
        lines += ["", f"{part}: {entry.summary}", *([entry.formula] if entry.formula else [])]
        lines += [
            f"    {title}: {' '.join(entry.sections[title].split())}"
            for title in ("Gradient", "Source", "Differs", "Tested")
            if title in entry.sections
        ]
    return "\n".join(lines)
