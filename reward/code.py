"""Program answers, run against hidden tests in a sandbox. The verdict is the parent's; expected values never enter."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from textwrap import dedent
from typing import Any

from reward.protocol import Example
from reward.sandbox import Limits, Outcome, run
from reward.text import after_thinking, until_stop
from reward.verdict import Reason, Verdict
from rlkd.errors import VerifierError

_FENCE = re.compile(  # the last block may lack its end
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON_NAMES = frozenset(["", "python", "py", "python3", "py3", "python2"])
_REASONS: dict[str, Reason] = {"timeout": "timeout", "memory": "memory"}

# Reads the candidate's source and the arguments; writes one line a call. It holds nothing worth stealing: whatever is
# forged here still has to equal an expected value that only the parent knows.
_HARNESS = """
import json, os, sys, types

PLAIN = (bool, int, float, str, list, tuple, set, frozenset, dict)

def encode(value, depth=0):  # a Counter is the dict it is made of, whatever its own methods say
    kind = next((base for base in type(value).__mro__ if base in PLAIN), type(value))
    if depth > 200:
        raise ValueError("nested too deeply")
    if value is None or kind is bool:
        return [kind.__name__, value]
    if kind is str:
        return ["str", str.__str__(value)]
    if kind in (int, float):
        return [kind.__name__, kind.__repr__(value)]
    if kind in (list, tuple, set, frozenset):
        name = "list" if kind in (list, tuple) else "set"
        return [name, [encode(item, depth + 1) for item in kind.__iter__(value)]]
    if kind is dict:
        return ["dict", [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]]
    return ["other", kind.__name__]

job = json.loads(sys.stdin.read())
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)
sys.modules["solution"] = module = types.ModuleType("solution")  # dataclasses look their module up
space = vars(module)
exec(compile(job["code"], "solution.py", "exec"), space)
target = space
for part in job["fn"].split("."):
    if isinstance(target, type):
        target = target()
    target = target[part] if isinstance(target, dict) else getattr(target, part)
for arguments in job["calls"]:
    out.write(json.dumps(encode(target(*arguments))) + "\\n")
    out.flush()
"""


class CodeVerifier:
    """All hidden tests pass: 1. Anything else, and a program that breaks a limit: 0, with the reason.

    Tests stand in ``example["tests"]`` or ``example["answer"]``, as a mapping or its JSON text:
    ``{"type": "call", "fn": "add", "tests": [[[1, 2], 3], ...]}`` (``fn`` may be ``Solution.add``) or
    ``{"type": "stdio", "tests": [["input", "output"], ...]}``. The last Python block outside thinking is the program.

    Args:
        time_limit_s: of one program run; ``total_s`` of all runs of one answer.
        memory_limit_mb: of one process; all of a run's processes together get twice as much.
        partial: score the share of passed tests instead of all or nothing.
    """

    name = "code"
    reads = frozenset[str]()

    def __init__(
        self, *, time_limit_s: float = 4.0, total_s: float = 7.0, memory_limit_mb: int = 384, partial: bool = False
    ) -> None:
        if not 0 < time_limit_s <= total_s or memory_limit_mb < 32:
            raise VerifierError(
                f"code: time_limit_s={time_limit_s}, total_s={total_s}, memory_limit_mb={memory_limit_mb}; "
                "accepted: 0 < time_limit_s <= total_s, memory_limit_mb >= 32"
            )
        self._limits = Limits(time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb)
        self._total, self._partial = total_s, partial

    def verify(self, completion: str, example: Example) -> Verdict:
        suite = suite_of(example)
        if isinstance(suite, str):
            return Verdict.abstain("bad_gold", suite)
        program = program_of(completion or "", suite.get("fn", ""))
        if program is None:
            return Verdict.wrong(reason="unparsed", detail="no Python code block outside thinking")
        passed, outcome = self._call(program, suite) if suite["type"] == "call" else self._stdio(program, suite)
        if outcome.status == "failed":
            return Verdict.abstain("error", f"no sandbox: {outcome.detail}")
        if outcome.status == "starved":
            return Verdict.abstain("timeout", "machine too busy: the program mostly waited for a core")
        return self._verdict(program, passed, len(suite["tests"]), outcome)

    def check_gold(self, example: Example) -> Verdict:
        """Right when there is at least one well-formed test, and a reference solution, if given, passes them all."""
        suite = suite_of(example)
        if isinstance(suite, str):
            return Verdict.abstain("bad_gold", suite)
        reference = example.get("reference_solution")
        if not isinstance(reference, str):
            return Verdict.right(f"{len(suite['tests'])} tests")
        verdict = self.verify(reference if "```" in reference else f"```python\n{reference}\n```", example)
        if verdict.score == 1.0 or verdict.abstained:
            return verdict
        return Verdict.abstain("bad_gold", f"the reference solution fails: {verdict.reason} {verdict.detail}")

    def _verdict(self, program: str, passed: int, total: int, outcome: Outcome) -> Verdict:
        shown, detail = program[:200], f"{passed}/{total} tests; {outcome.status} {outcome.detail}".strip("; ")
        if passed == total:
            return Verdict.right(shown, detail)
        if self._partial and passed:
            return Verdict.graded(passed / total, shown, detail)
        return Verdict.wrong(shown, detail, _REASONS.get(outcome.status, "wrong"))

    def _call(self, program: str, suite: Mapping[str, Any]) -> tuple[int, Outcome]:
        """One process for all calls; a wrong, missing or surplus line fails its test."""
        job = {"code": program, "fn": suite["fn"], "calls": [arguments for arguments, _ in suite["tests"]]}
        outcome = run(_HARNESS, stdin=json.dumps(job), limits=self._limits)
        lines = outcome.stdout.decode("utf-8", "replace").splitlines()
        if len(lines) > len(suite["tests"]) or (outcome.status not in ("ok", "timeout") and not self._partial):
            return 0, outcome
        results = [_matches(line, expected) for line, (_, expected) in zip(lines, suite["tests"], strict=False)]
        return sum(results), outcome

    def _stdio(self, program: str, suite: Mapping[str, Any]) -> tuple[int, Outcome]:
        """One process a test, so that none sees another's input or state."""
        passed, left, worst = 0, self._total, Outcome("ok", b"")
        for given, expected in suite["tests"]:
            if left <= 0.05:
                return passed, Outcome("timeout", b"", "all runs together")
            limits = replace(self._limits, time_limit_s=min(left, self._limits.time_limit_s))
            outcome = run(program, stdin=str(given), limits=limits)
            left -= outcome.seconds
            if outcome.status == "ok" and same_output(outcome.stdout.decode("utf-8", "replace"), str(expected)):
                passed += 1
                continue
            worst = outcome
            if not self._partial or outcome.status in ("failed", "starved"):
                break
        return passed, worst


def suite_of(example: Example) -> dict[str, Any] | str:
    """The tests of an example, or what is wrong with them."""
    raw = example.get("tests") if example.get("tests") is not None else example.get("answer")
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError:
            return "tests are no JSON"
    if not isinstance(raw, Mapping) or raw.get("type") not in ("call", "stdio"):
        return "tests need type: call or stdio"
    tests = raw.get("tests")
    pairs = isinstance(tests, (list, tuple)) and all(
        isinstance(test, (list, tuple)) and len(test) == 2 for test in tests
    )
    if not tests or not pairs:
        return "tests: at least one [input, expected] pair is needed"
    if raw["type"] == "call":
        names = isinstance(raw.get("fn"), str) and all(part.isidentifier() for part in raw["fn"].split("."))
        if not names or not all(isinstance(arguments, (list, tuple)) for arguments, _ in tests):
            return "call tests need fn and a list of arguments each"
    return dict(raw)


def program_of(completion: str, fn: str = "") -> str | None:
    """The last Python block that is said outside thinking; a bare program counts when it is all that is said.

    Blocks that define what ``fn`` names go first, then labelled ones: an example of use or of output is no program.
    """
    said = after_thinking(until_stop(completion))
    if said is None:
        return None
    found = [(block[1].casefold(), dedent(block[2])) for block in _FENCE.findall(said)]
    blocks = [(label, code) for label, code in found if label in _PYTHON_NAMES]
    if blocks:
        choices = (
            [code for _, code in blocks if fn and _defines(code, fn.split(".")[0])],
            [code for label, code in blocks if label and _compiles(code)],
            [code for _, code in blocks if _compiles(code)],
            [code for _, code in blocks],
        )
        return next(choice[-1] for choice in choices if choice)
    return said if re.search(r"^\s*(?:def|import|from|class|print)\b", said, re.MULTILINE) and _compiles(said) else None


def _defines(source: str, name: str) -> bool:
    return bool(re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", source, re.MULTILINE)) and _compiles(
        source
    )


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _matches(line: str, expected: Any) -> bool:
    try:
        return _equal(json.loads(line), expected)
    except (ValueError, TypeError, IndexError, RecursionError):
        return False


def _equal(encoded: Any, expected: Any) -> bool:
    """Type and value. True is not 1; 3.0 is 3; a tuple is a list, which JSON cannot tell apart."""
    kind, value = encoded
    if expected is None or isinstance(expected, (bool, str)):
        return bool(kind == type(expected).__name__ and value == expected and type(value) is type(expected))
    if isinstance(expected, (int, float)):
        return kind in ("int", "float") and _same_number(kind, value, expected)
    if isinstance(expected, (list, tuple)):
        return kind == "list" and len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(expected, Mapping):
        return kind == "dict" and _same_mapping(value, expected)
    return False


def _same_number(kind: str, text: str, expected: int | float) -> bool:
    if kind == "int" and isinstance(expected, int):
        return text == str(expected)
    got = float(text) if len(text) < 400 else math.nan
    return got == expected or math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


def _same_mapping(pairs: Any, expected: Mapping[str, Any]) -> bool:
    """JSON keys are strings; a key that is a number counts as its text."""
    if len(pairs) != len(expected):
        return False
    keys = {str(key[1]): item for key, item in pairs}
    return keys.keys() == expected.keys() and all(_equal(keys[name], item) for name, item in expected.items())


def same_output(got: str, expected: str) -> bool:
    """Line by line without trailing blanks and empty ends; numbers with a decimal point to nine digits."""
    ours, theirs = ([line.split() for line in text.rstrip().split("\n")] for text in (got, expected))
    if len(ours) != len(theirs):
        return False
    return all(len(one) == len(two) and all(map(_same_token, one, two)) for one, two in zip(ours, theirs, strict=True))


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if "." not in expected or len(got) > 40:
        return False
    try:
        return math.isclose(float(got), float(expected), rel_tol=1e-9, abs_tol=1e-12)
    except ValueError:
        return False
