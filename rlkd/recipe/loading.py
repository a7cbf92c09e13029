"""Recipe file + overrides -> validated ``Recipe``; every complaint names its dotted path."""

from __future__ import annotations

import re
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlkd.errors import RecipeError, did_you_mean
from rlkd.recipe.checks import check_recipe
from rlkd.recipe.schema import Recipe

LAUNCH_KEY = "_"
FIRST_LINES = ("#!/usr/bin/env -S accelerate launch", '_: r"""')
LAST_LINE = '# """; import rlkd; rlkd.main(__file__)'
_SHOWN = 60  # characters of a wrong value that are repeated
_QUOTED = re.compile(r"'([^']+)'")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise RecipeError(f"{key_node.start_mark.name}:{line}: the key '{key}' is given twice; keep one of them")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe file.

    Args:
        path: a YAML file, with or without the two launch lines.
        overrides: ``dotted.key=value`` items; a stage may be named by its name or its index.

    Raises: RecipeError naming file, dotted path, what was given and what is accepted.
    """
    raw = read_recipe_file(path)
    for item in overrides:
        apply_override(raw, item)
    return validate_recipe(raw, where=str(path))


def validate_recipe(raw: Mapping[str, Any], *, where: str) -> Recipe:
    """Validate a plain mapping. Raises: RecipeError listing every fault, not just the first."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in dict.fromkeys(_describe(raw, item) for item in error.errors()))
        raise RecipeError(f"{where} cannot be run as written:\n{faults}") from None
    check_recipe(recipe, where=where)
    return recipe


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """Parse the YAML of a recipe into a plain mapping without the launch key."""
    path = Path(path)
    if path.is_dir():
        raise RecipeError(f"'{path}' is a folder; name a recipe file in it")
    if not path.is_file():
        known = (path.parent, Path("recipes"))  # `rlkd train kdrl`, too
        here = [str(p) for folder in known if folder.is_dir() for p in folder.glob("*.yaml")]
        if path.suffix != ".yaml" and (named := [p for p in here if Path(p).stem == path.stem]):
            raise RecipeError(f"there is no recipe file '{path}'; did you mean '{named[0]}'?")
        raise RecipeError(f"there is no recipe file '{path}'{did_you_mean(str(path), here)}")
    try:
        with path.open(encoding="utf-8") as stream:
            raw = yaml.load(stream, _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} must hold a mapping of recipe keys, not {type(raw).__name__}")
    raw.pop(LAUNCH_KEY, None)
    return raw


def has_launch_lines(path: str | Path) -> bool:
    """Whether ``accelerate launch FILE`` would run this recipe."""
    lines = Path(path).read_text(encoding="utf-8").rstrip().splitlines()
    return len(lines) > 3 and lines[1].strip() == FIRST_LINES[1] and lines[-1].strip() == LAST_LINE


def apply_override(raw: dict[str, Any], item: str) -> None:
    """Set one ``dotted.key=value`` in place; the value is YAML, and ``2e-6`` is a number here."""
    key, equals, text = item.partition("=")
    if "[" in key:
        dotted = re.sub(r"\[(\w+)\]", r".\1", key)
        raise RecipeError(f"override '{item}': entries of a list are named with dots: {dotted}={text}")
    if not equals or not key:
        raise RecipeError(f"override '{item}' is not of the form dotted.key=value, e.g. optim.lr=2e-6")
    node: Any = raw
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        node = _step_into(node, part, ".".join(parts[: depth + 1]))
    last = parts[-1]
    if isinstance(node, list):
        node[_list_index(node, last, key)] = _override_value(text, item)
    else:
        node[last] = _override_value(text, item)


def _override_value(text: str, item: str) -> Any:
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or error
        raise RecipeError(
            f"override '{item}': the value is not YAML ({reason}); quote the whole override for the shell, "
            "e.g. 'objective={kind: grpo}'"
        ) from None
    return _numbers(value)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``2e-6`` as text; on a command line nobody means that."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def _step_into(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, part, path)]
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    if isinstance(child, dict | list):
        return child
    raise RecipeError(f"override: '{path}' is {child!r}, which has no keys below it")


def _list_index(node: list[Any], part: str, path: str) -> int:
    names = [item.get("name", item.get("kind")) if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    known = ", ".join(str(name) for name in names)
    raise RecipeError(f"override: '{path}' names no entry; there are {len(node)} (0 to {len(node) - 1}): {known}")


# ---------------------------------------------------------------- pydantic's errors in the recipe's terms


def _describe(raw: Any, error: Mapping[str, Any]) -> str:
    path = _dotted(raw, error)
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    shown = repr(given) if not isinstance(given, dict | list) or len(repr(given)) < _SHOWN else type(given).__name__
    if kind == "extra_forbidden":
        known = _known_fields(error["loc"])
        if (chosen := _sibling_of_another_kind(raw, error["loc"])) is not None:
            section, name = chosen
            return (
                f"{path}: is not of kind '{name}'; an override of `kind` keeps the section's other keys: to replace it "
                f"all, write '{section}={{kind: {name}, ...}}'"
            )
        if len(error["loc"]) == 1 and (homes := _homes_of(str(error["loc"][-1]))):
            return f"{path}: unknown key; did you mean {' or '.join(homes)}?"
        return f"{path}: unknown key{did_you_mean(str(error['loc'][-1]), known)}; known here: {', '.join(known)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}: given {shown}; write a section of keys, e.g. {path}: {{{_example_key(error['loc'])}: ...}}"
    if kind == "missing":
        return f"{path}: missing; this key is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag.strip("' ") for tag in str(context.get("expected_tags", "")).split(",") if tag.strip()]
        if kind == "union_tag_not_found":
            tags = tags or ["see `rlkd show --schema`"]
            return f"{path}.kind: missing; accepted: {', '.join(tags)}"
        tag = str(context["tag"])
        return f"{path}.kind: given '{tag}'; accepted: {', '.join(tags)}{did_you_mean(tag, tags)}"
    if kind == "too_short":
        return f"{path}: given {shown}; {context['min_length']} values are wanted"
    hint = did_you_mean(str(given), _QUOTED.findall(context["expected"])) if kind == "literal_error" else ""
    if isinstance(given, str) and _NUMBER.fullmatch(given) and kind in ("float_type", "int_type"):
        hint = f" (YAML reads {given} as text: write {_as_yaml_float(given)}, without quotes)"
    message = str(context["error"]) if kind == "value_error" and "error" in context else _plain(error["msg"])
    return f"{path}: {message}; given {shown}{hint}" if kind != "value_error" else f"{path}: {message}"


def _plain(message: str) -> str:
    return message[0].lower() + message[1:]


def _as_yaml_float(text: str) -> str:
    mantissa, _, exponent = text.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    sign = "" if exponent.startswith(("+", "-")) or not exponent else "+"
    return f"{mantissa}e{sign}{exponent}" if exponent else mantissa


def _dotted(raw: Any, error: Mapping[str, Any]) -> str:
    """pydantic's location without the union tags and list indices that the file does not contain."""
    parts: list[str] = []
    node, loc = raw, error["loc"]
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
        elif not (last and error["type"] == "missing"):
            continue
        parts.append(str(part))
    return ".".join(parts) or "recipe"


def _known_fields(loc: Iterable[str | int]) -> list[str]:
    """Field names accepted beside the last element of ``loc``."""
    classes: list[type[BaseModel]] = [Recipe]
    for part in list(loc)[:-1]:
        if isinstance(part, int):
            continue
        tagged = [c for c in classes if "kind" in c.model_fields and c.model_fields["kind"].default == part]
        if tagged:
            classes = tagged
            continue
        fields = [c.model_fields[part].annotation for c in classes if part in c.model_fields]
        classes = [found for annotation in fields for found in _sections(annotation)] or classes
    return sorted({name for c in classes for name in c.model_fields})


def _sibling_of_another_kind(raw: Any, loc: Sequence[str | int]) -> tuple[str, str] | None:
    """(section, its kind) where an unknown key belongs to another kind of the same section."""
    node: Any = raw
    path: list[str] = []
    for part in loc[:-1]:
        if part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int):
            node = node[part]
            path.append(str(part))
    if not isinstance(node, dict) or "kind" not in node or not path:
        return None
    parents = [part for part in loc[:-1] if part != node["kind"]]
    elsewhere = str(loc[-1]) in _known_fields([*parents, ""])  # without its kind: of all kinds
    return (".".join(path), str(node["kind"])) if elsewhere else None


def _homes_of(name: str) -> list[str]:
    """Dotted places of a key that was written at the top: lr is optim.lr."""
    aliases = {
        "learning_rate": "lr",
        "batch_size": "prompts_per_step",
        "num_generations": "group_size",
        "beta": "kl_coef",
    }
    wanted = aliases.get(name, name)
    return [
        f"'{section}.{wanted}'"
        for section, field in Recipe.model_fields.items()
        if any(wanted in found.model_fields for found in _sections(field.annotation))
    ][:3]


def _example_key(loc: Sequence[str | int]) -> str:
    known = _known_fields([*loc, ""])
    return "kind" if "kind" in known else known[0]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for item in typing.get_args(annotation) for found in _sections(item)]
