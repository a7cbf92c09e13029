"""Auditing a verifier: labelled cases or a dataset's own golds, with a second checker beside it.

audit_verifier("math", "cases.jsonl")  # rows: id, kind, gold, completion, expected, confidence
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from reward.pool import VerifierPool
from reward.registry import BUILTIN, Spec
from reward.verdict import Verdict
from rlkd.errors import VerifierError

KIND_VERIFIERS = {"multiple_choice": "multiple_choice", "code_exec": "code", "format": "format"}
SECOND_CHECKERS = {"math": "reward.second:math_verify_says"}
GOLD_KIND = "gold"  # rows of a dataset: no completion, only a gold to check
MAX_GENERATED = 5_000_000  # characters of a generated completion
MAX_FACTOR = 10**1000  # of two numbers that are multiplied


@dataclass
class KindReport:
    """Counts and ids of one kind of case."""

    cases: int = 0
    right: int = 0
    false_positives: list[str] = field(default_factory=list)
    false_negatives: list[str] = field(default_factory=list)
    abstained: list[str] = field(default_factory=list)
    timed_out: list[str] = field(default_factory=list)
    policy_differs: list[str] = field(default_factory=list)


@dataclass
class AuditReport:
    """What an audit found. An abstention counts as right where the case expects no reward, else as wrong."""

    verifier: str
    cases: int
    seconds: float
    slowest_s: float
    kinds: dict[str, KindReport]
    reasons: dict[str, int]
    disagreements: list[str]
    second_checker: str = ""
    first_error: str = ""  # of a verifier that raised

    @property
    def wrong(self) -> list[str]:
        """Ids judged otherwise than expected, policy cases left out."""
        return [i for kind in self.kinds.values() for i in (*kind.false_positives, *kind.false_negatives)]

    def to_json(self) -> dict[str, Any]:
        totals = {
            name: sum(len(getattr(kind, name)) for kind in self.kinds.values())
            for name in ("false_positives", "false_negatives", "abstained", "timed_out", "policy_differs")
        }
        return {**asdict(self), "wrong": self.wrong, "totals": totals}


def audit_verifier(name: str, cases: str | Path, *, as_json: bool = False, stream: TextIO | None = None) -> AuditReport:
    """``rlkd audit-verifier NAME --cases FILE.jsonl [--json]``: judge the file's rows and print what was found."""
    report = audit_cases(name, read_cases(cases))
    print_report(report, as_json=as_json, stream=stream)
    return report


def read_cases(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file. ``completion_gen`` and ``gold_gen`` (expressions for long inputs) are expanded."""
    rows = []
    if not Path(path).is_file():
        raise VerifierError(f"there is no file of cases '{path}'")
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line))
            for name in ("completion", "gold"):
                if row.get(f"{name}_gen"):
                    row[name] = _expand(ast.parse(row[f"{name}_gen"], mode="eval").body)
        except (ValueError, TypeError, SyntaxError) as error:
            raise VerifierError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    if not rows:
        raise VerifierError(f"{path} holds no case")
    return rows


def _expand(node: ast.expr, names: Mapping[str, Any] = {}) -> Any:
    """Literals, + - * // % **, f-strings, lists, loops and a few calls (_CALLS, join): no eval on a file's text."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_expand(item, names) for item in node.elts]
    if isinstance(node, ast.JoinedStr):
        return "".join(str(_expand(part, names)) for part in node.values)
    if isinstance(node, ast.FormattedValue) and node.format_spec is None:
        return _expand(node.value, names)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_expand(node.operand, names)
    if isinstance(node, ast.BinOp):
        return _combined(node.op, _expand(node.left, names), _expand(node.right, names))
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and len(node.generators) == 1:
        loop = node.generators[0]
        if isinstance(loop.target, ast.Name) and not loop.ifs:
            return [_expand(node.elt, {**names, loop.target.id: item}) for item in _sized(_expand(loop.iter, names))]
    if isinstance(node, ast.Call) and not node.keywords:
        return _call(node, names)
    raise ValueError(f"cannot expand {ast.unparse(node)!r}")


def _combined(operator: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Pow) and abs(left) <= 1000 and 0 <= right <= 1000:
        return left**right
    if isinstance(operator, ast.Mod) and isinstance(left, str) and not re.search(r"%[^%a-zA-Z]", left):
        return left % (tuple(right) if isinstance(right, list) else right)
    if isinstance(operator, (ast.FloorDiv, ast.Mod)) and isinstance(left, int) and isinstance(right, int):
        return left // right if isinstance(operator, ast.FloorDiv) else left % right
    if not isinstance(operator, ast.Mult):
        raise ValueError(f"cannot expand {type(operator).__name__}")
    if all(isinstance(side, (int, float)) and abs(side) < MAX_FACTOR for side in (left, right)):
        return left * right
    size = [len(side) if isinstance(side, (str, list)) else side for side in (left, right)]
    if not all(isinstance(side, (int, float)) for side in size) or size[0] * size[1] > MAX_GENERATED:
        raise ValueError(f"generated text of {size[0]} times {size[1]}; at most {MAX_GENERATED}")
    return left * right


def _sized(items: Any) -> Any:
    if len(items) > MAX_GENERATED:
        raise ValueError(f"{len(items)} items; at most {MAX_GENERATED}")
    return items


_CALLS: dict[str, Any] = {
    "float": float,
    "str": str,
    "chr": chr,
    "int": int,
    "range": range,
    "len": len,
    "reversed": lambda items: list(reversed(items)),
}


def _call(node: ast.Call, names: Mapping[str, Any]) -> Any:
    name, args = ast.unparse(node.func), node.args
    if name in _CALLS:
        return _CALLS[name](*(_expand(arg, names) for arg in args))
    if name == "map" and len(args) == 2 and ast.unparse(args[0]) in _CALLS:
        return [_CALLS[ast.unparse(args[0])](item) for item in _sized(_expand(args[1], names))]
    if isinstance(node.func, ast.Attribute) and node.func.attr == "join" and len(args) == 1:
        return str(_expand(node.func.value, names)).join(_sized(_expand(args[0], names)))
    raise ValueError(f"cannot expand a call of {name!r}")


def audit_cases(
    verifier: Spec,
    rows: Sequence[Mapping[str, Any]],
    *,
    workers: int = 2,
    time_limit_s: float = 8.0,
    memory_limit_mb: int = 1024,
) -> AuditReport:
    """Judge labelled cases, and check the golds of rows that have no completion, in a pool.

    A row of a kind that belongs to another built-in verifier (KIND_VERIFIERS) is judged by that one when ``verifier``
    is itself built in, so that one mixed file can be audited in one go; a verifier of your own judges every row.
    """
    name = verifier if isinstance(verifier, str) else str(verifier.get("name"))
    limits = {"workers": workers, "time_limit_s": time_limit_s, "memory_limit_mb": memory_limit_mb}
    labelled = [row for row in rows if "expected" in row]
    golds = [row for row in rows if "expected" not in row]
    started = time.monotonic()
    with VerifierPool(_routed(verifier, name), **limits) as pool:  # type: ignore[arg-type]
        verdicts = pool.verify_batch([(row.get("completion"), _example(row)) for row in labelled])
        gold_verdicts = pool.check_golds([_example(row) for row in golds])
        slowest = pool.stats.slowest_s
    seconds = time.monotonic() - started
    kinds = _by_kind(labelled, verdicts)
    if golds:
        kinds[GOLD_KIND] = _gold_report(golds, gold_verdicts)
    return AuditReport(
        verifier=name,
        cases=len(rows),
        seconds=round(seconds, 3),
        slowest_s=round(slowest, 3),
        kinds=kinds,
        reasons=dict(Counter(verdict.reason for verdict in (*verdicts, *gold_verdicts))),
        disagreements=_disagreements(name, labelled, verdicts, limits),
        second_checker=SECOND_CHECKERS.get(name, ""),
        first_error=next((verdict.detail for verdict in (*verdicts, *gold_verdicts) if verdict.reason == "error"), ""),
    )


def _routed(verifier: Spec, name: str) -> Spec:
    if name not in BUILTIN:
        return verifier
    others = {kind: spec for kind, spec in KIND_VERIFIERS.items() if spec != name}
    return {"name": "route", "field": "_kind", "routes": others, "default": verifier}


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as an example: the case's gold is the answer; a dataset's own row keeps its fields."""
    example = {key: value for key, value in row.items() if key not in ("completion", "expected")}
    if "gold" in row:
        example["answer"] = row["gold"]
    return {**example, "_kind": row.get("kind", "")}


def _id(row: Mapping[str, Any], at: int) -> str:
    return str(row.get("id", at))


def _by_kind(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, KindReport]:
    kinds: dict[str, KindReport] = {}
    for at, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        report = kinds.setdefault(str(row.get("kind", "case")), KindReport())
        report.cases += 1
        accepted, expected = verdict.score == 1.0, bool(row["expected"])
        if verdict.abstained:
            report.abstained.append(_id(row, at))
        if verdict.reason == "timeout":
            report.timed_out.append(_id(row, at))
        if accepted == expected:
            report.right += 1
        elif row.get("confidence") == "policy":
            report.policy_differs.append(_id(row, at))
        else:
            (report.false_positives if accepted else report.false_negatives).append(_id(row, at))
    return dict(sorted(kinds.items()))


def _gold_report(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> KindReport:
    report = KindReport(cases=len(rows), right=sum(verdict.score == 1.0 for verdict in verdicts))
    report.abstained = [
        _id(row, at) for at, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)) if verdict.abstained
    ]
    return report


def _disagreements(
    name: str, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict], limits: Mapping[str, Any]
) -> list[str]:
    """Ids on which a second, independent checker says otherwise. Not errors: places to look at."""
    spec = SECOND_CHECKERS.get(name)
    mine = [at for at, row in enumerate(rows) if row.get("kind") not in KIND_VERIFIERS]
    if spec is None or not mine:
        return []
    with VerifierPool(spec, **limits) as pool:
        second = pool.verify_batch([(rows[at].get("completion"), _example(rows[at])) for at in mine])
    return [
        _id(rows[at], at)
        for at, other in zip(mine, second, strict=True)
        if other.score is not None
        and verdicts[at].score is not None
        and (other.score == 1.0) != (verdicts[at].score == 1.0)
    ]


def print_report(report: AuditReport, *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """The report as one JSON object, or as a table of kinds with the ids that need a look."""
    if as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False), file=stream)
        return
    print(
        f"{report.verifier}: {report.cases} rows in {report.seconds:.1f} s, slowest {report.slowest_s:.2f} s",
        file=stream,
    )
    print(f"{'kind':28}{'rows':>6}{'right':>7}{'FP':>5}{'FN':>5}{'abst.':>7}{'timeout':>9}{'policy':>8}", file=stream)
    for kind, row in report.kinds.items():
        counts = (len(row.false_positives), len(row.false_negatives), len(row.abstained), len(row.timed_out))
        print(
            f"{kind:28}{row.cases:>6}{row.right:>7}{counts[0]:>5}{counts[1]:>5}{counts[2]:>7}{counts[3]:>9}"
            f"{len(row.policy_differs):>8}",
            file=stream,
        )
    for title, name in _LISTS.items():
        ids = [case for row in report.kinds.values() for case in getattr(row, name)]
        if ids:
            print(f"{title}: {' '.join(ids)}", file=stream)
    if report.first_error:
        print(f"first error of the verifier: {report.first_error}", file=stream)
    if report.second_checker:
        print(
            f"{report.second_checker} disagrees on {len(report.disagreements)}: {' '.join(report.disagreements)}",
            file=stream,
        )


_LISTS = {
    "wrongly accepted": "false_positives",
    "wrongly rejected": "false_negatives",
    "policy cases judged the other way": "policy_differs",
    "abstained": "abstained",
    "timed out": "timed_out",
}
