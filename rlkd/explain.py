"""What stands behind ``rlkd explain``: formula, gradient, source and tests of every function, from its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlkd.errors import RlkdError, did_you_mean
from rlkd.methods import METHODS

PACKAGES = ("rlkd.tensors", "rlkd.divergences", "rlkd.advantages", "rlkd.objectives")
SECTIONS = ("Args", "Returns", "Gradient", "Raises", "Source", "Differs", "Tested")
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
WIDTH = 100  # columns of what is printed


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
        return _explain_method(key, functions)
    if key in functions:
        return _explain_function(functions[key])
    if kinds := [name for name, method in METHODS.items() if key in method.kinds or name.startswith(f"{key}_")]:
        return "\n\n\n".join(_explain_method(name, functions) for name in kinds)
    for short, estimator in ESTIMATORS.items():
        if key == short or key in estimator.aliases:
            behind = estimator.loss.__name__ if estimator.loss else "k1_value"
            head = f"{short}: as a value {estimator.value}; as a loss its gradient is {estimator.gradient}"
            return f"{head}\n\n{_explain_function(functions[behind])}"
    known = [*functions, *METHODS, *ESTIMATORS]
    raise RlkdError(f"nothing is called '{name}'{did_you_mean(key, known)}; `rlkd explain` without a name lists all")


def index() -> list[IndexRow]:
    """Paper -> method -> function -> recipe -> test, one row a method and function."""
    functions = entries()
    return [
        IndexRow(paper=method.paper, method=name, function=part, recipes=recipes, tests=functions[part].tests)
        for name, method in METHODS.items()
        for recipes in [recipes_of(name)]
        for part in method.parts
    ]


def recipes_of(method: str) -> tuple[str, ...]:
    """Recipe files that use a method: by a `kind:` of it, or named after it (rltf_sd.yaml, paper/rltf-sd-*.yaml)."""
    kinds = {*METHODS[method].kinds}
    return tuple(recipe for recipe, used in recipe_kinds().items() if used & kinds or _namesake(recipe) == method)


def _namesake(recipe: str) -> str | None:
    stem = Path(recipe).stem.replace("-", "_")
    return max((name for name in METHODS if f"{stem}_".startswith(f"{name}_")), key=len, default=None)


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
            lines += ["", f"{method}  {METHODS[method].title} [{row.paper}]", *_item("recipes", recipes)]
        lines += _item(row.function, ", ".join(row.tests) or "-")
    return "\n".join(lines[1:])


def _sections(text: str) -> Iterator[tuple[str, str]]:
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):", text, flags=re.MULTILINE)
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield title, inspect.cleandoc(body)


def _explain_function(entry: Entry) -> str:
    methods = [name for name, method in METHODS.items() if entry.name in method.parts]
    used = f"\n\nPart of: {', '.join(methods)}" if methods else ""
    if entry.name in METHODS:
        method = METHODS[entry.name]
        head = [f"{method.title} [{method.paper}]: {method.how}", f"Made of: {', '.join(method.parts)}"]
        lines = [*head, *_recipes(entry.name)]
        used += "\n\nAs a method\n" + "\n".join(line for text in lines for line in _wrapped(text))
    return f"{entry.name} ({entry.module})\n\n{_plain(entry.text)}{used}"


def _recipes(name: str) -> list[str]:
    """Which recipes use a method, or what on a command line makes one of recipes/grpo.yaml."""
    recipes, overrides = recipes_of(name), METHODS[name].overrides
    lines = [f"Recipes: {', '.join(recipes)}"] if recipes else []
    if overrides:
        quoted = " ".join(f"'{each}'" if " " in each else each for each in split_overrides(overrides))
        lines.append(f"In a recipe: recipes/grpo.yaml {quoted}")
    return lines or ["Recipes: no key names it; its functions are for code of your own"]


def split_overrides(text: str) -> list[str]:
    """Overrides that stand in a line; one ends where another dotted key begins."""
    return re.split(r" (?=[\w.]+=)", text)


def _explain_method(name: str, functions: dict[str, Entry]) -> str:
    method = METHODS[name]
    lines = [f"{method.title} [{method.paper}]", "", *textwrap.wrap(method.how, WIDTH), ""]
    lines += [line for text in _recipes(name) for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ")]
    for part in method.parts:
        entry = functions[part]
        lines += ["", part, *textwrap.wrap(entry.summary, WIDTH, initial_indent="    ", subsequent_indent="    ")]
        lines += ["", textwrap.indent(entry.formula, "    "), ""] if entry.formula else []
        for title in ("Gradient", "Source", "Differs", "Tested"):
            lines += _item(title, entry.sections[title]) if title in entry.sections else []
    lines += ["", f"Arguments, shapes and refusals of one of them: rlkd explain {method.parts[0]}"]
    return _plain("\n".join(lines))


def _item(title: str, text: str) -> list[str]:
    """``title: text`` in lines of the page's width, indented below the title."""
    return _wrapped(f"{title}: {' '.join(text.split())}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="    ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(text: str) -> str:
    """Docstring marks are for editors."""
    return text.replace("``", "")
