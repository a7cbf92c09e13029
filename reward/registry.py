"""From the plain spec in a recipe to a verifier: a name, an installed entry point, or ``module:attribute``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from reward.protocol import Example, Verifier
from reward.verdict import Verdict
from rlkd.errors import VerifierError, did_you_mean

GROUP = "rlkd.verifiers"
Spec = str | Mapping[str, Any]

BUILTIN: dict[str, str] = {
    "code": "reward.code:CodeVerifier",
    "compose": "reward.compose:Composition",
    "exact": "reward.exact:ExactVerifier",
    "format": "reward.format:FormatVerifier",
    "leak": "reward.leak:LeakVerifier",
    "length": "reward.length:LengthVerifier",
    "llm_judge": "reward.llm_judge:LlmJudge",
    "math": "reward.math:MathVerifier",
    "multiple_choice": "reward.multiple_choice:MultipleChoiceVerifier",
    "numeric": "reward.numeric:NumericVerifier",
    "reasoning_gym": "reward.reasoning_gym:ReasoningGymVerifier",
    "repetition": "reward.repetition:RepetitionVerifier",
    "route": "reward.compose:Route",
}


class FunctionVerifier:
    """A plain function ``f(completion, example, **options) -> bool | float | None | Verdict`` as a verifier."""

    def __init__(self, function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._function = function
        self._options = dict(options)

    def verify(self, completion: str, example: Example) -> Verdict:
        result = self._function(completion, example, **self._options)
        if isinstance(result, Verdict):
            return result
        if hasattr(result, "item") and getattr(result, "ndim", 1) == 0:  # a numpy or torch scalar
            result = result.item()
        if result is None:
            return Verdict.abstain("error", f"{self.name} returned None")
        if not isinstance(result, (bool, int, float)) or not math.isfinite(result) or not 0 <= result <= 1:
            return Verdict.abstain(
                "error", f"{self.name} returned {result!r}; accepted: bool, a number in [0, 1], Verdict"
            )
        return Verdict.graded(float(result))

    def check_gold(self, example: Example) -> Verdict:
        """A function says nothing about golds, so any row that has one passes."""
        return Verdict.right() if example.get("answer") is not None else Verdict.abstain("bad_gold", "no answer")


def known() -> dict[str, str]:
    """Every verifier that has a name here, built-in or from an installed package, with its target."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | BUILTIN


def load(spec: Spec) -> Verifier:
    """Build a verifier from ``"math"``, ``{"name": "math", "policy": "strict"}`` or ``"my_package.my_module:judge"``.

    Raises: VerifierError when the name is unknown, its module does not import, or an option is not accepted.
    """
    name, options = _split(spec)
    target = name if ":" in name else known().get(name)
    if target is None:
        names = known()
        raise VerifierError(
            f"unknown verifier '{name}'{did_you_mean(name, names)}; known: {', '.join(sorted(names))}; "
            "or 'module:function'"
        )
    thing = _import(target, name)
    if isinstance(thing, type):
        return _checked(_build(thing, name, options), name)
    if hasattr(thing, "verify"):
        if options:
            raise VerifierError(f"verifier '{name}' is a ready object and takes no options; got {', '.join(options)}")
        return _checked(thing, name)
    if callable(thing):
        return FunctionVerifier(thing, name, options)
    raise VerifierError(
        f"verifier '{name}' points at {thing!r}; accepted: a class, an object with verify(), a function"
    )


def _split(spec: Spec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise VerifierError(f"a verifier spec needs 'name'; got keys {sorted(map(str, spec))}")
    return name, options


def _import(target: str, name: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise VerifierError(f"verifier '{name}': module '{module_name}' does not import: {error}") from error
    if not hasattr(module, attribute):
        raise VerifierError(
            f"verifier '{name}': no '{attribute}' in {module_name}{did_you_mean(attribute, dir(module))}"
        )
    return getattr(module, attribute)


def _build(factory: type, name: str, options: Mapping[str, Any]) -> Any:
    try:
        return factory(**options)
    except TypeError as error:
        raise VerifierError(f"verifier '{name}' with options {dict(options)}: {error}") from error


def _checked(thing: Any, name: str) -> Verifier:
    if not isinstance(thing, Verifier):
        raise VerifierError(f"verifier '{name}' lacks one of: name, verify(completion, example), check_gold(example)")
    return thing
