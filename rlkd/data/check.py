"""Holding a card against its rows: what is wrong, in which rows. Nothing is repaired and no good row is lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reward.verdict import Verdict
from rlkd.data.cards import DataCard
from rlkd.data.chat import encode, encode_answer, render
from rlkd.data.curate.filters import question_faults
from rlkd.data.fields import lookup
from rlkd.data.rows import BadRow, Row
from rlkd.data.template import (
    ChatTokenizer,
    TemplateFault,
    inner_end_fault,
    round_trip_fault,
    template_faults,
)
from rlkd.data.text import answer_kind, text_key
from rlkd.errors import DataCardError, RecipeError

SHOWN_ROWS = 8
HARMLESS = frozenset({"pad_is_eos"})  # with masks set by position; named all the same
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "number": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


CheckGolds = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]


@dataclass(frozen=True)
class RowFault:
    """One thing that is wrong. ``row`` counts from 1; 0 speaks about the whole set."""

    row: int
    kind: str
    detail: str


@dataclass
class CheckReport:
    """All faults of a card's rows, and what the rows look like."""

    card: str
    rows: int = 0
    readable: int = 0
    examples: int = 0
    faults: list[RowFault] = field(default_factory=list)
    answer_kinds: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong (a check that was skipped is named in ``skipped``)."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, every fault included."""
        faults = [asdict(fault) for fault in self.faults]
        return {**vars(self), "ok": self.ok, "faults": faults, "answer_kinds": dict(self.answer_kinds)}

    def by_kind(self) -> dict[str, list[RowFault]]:
        """Faults grouped by kind, most frequent first."""
        groups: dict[str, list[RowFault]] = defaultdict(list)
        for fault in self.faults:
            groups[fault.kind].append(fault)
        return dict(sorted(groups.items(), key=lambda item: -len(item[1])))

    def lines(self) -> list[str]:
        """The report for a terminal: what is wrong in which rows, then what the rows look like."""
        out = [f"card {self.card}: {self.rows} rows, {self.readable} readable, {self.examples} usable examples"]
        for kind, faults in self.by_kind().items():
            numbers = [str(fault.row) for fault in faults if fault.row]
            more = f" and {len(numbers) - SHOWN_ROWS} more" if len(numbers) > SHOWN_ROWS else ""
            where = f" in rows {', '.join(numbers[:SHOWN_ROWS])}{more}" if numbers else ""
            out.append(f"  {kind}: {len(faults)}{where}: {faults[0].detail}")
        kinds = ", ".join(
            f"{kind} {count / max(1, self.examples):.1%}" for kind, count in self.answer_kinds.most_common()
        )
        out.append(
            f"  golds: {kinds}; {guess_rate(self.answer_kinds):.1%} of the rows a coin or a letter guess can hit"
        )
        out += [
            f"  {name}: " + ", ".join(f"{k} {v:.0f}" for k, v in stats.items()) for name, stats in self.lengths.items()
        ]
        out += [f"  note: {note}" for note in self.notes]
        out += [f"  not checked: {reason}" for reason in self.skipped]
        return [*out, "  nothing wrong" if self.ok else f"  {len(self.faults)} faults"]


def guess_rate(kinds: Mapping[str, int]) -> float:
    """Share of golds that are yes/no or a letter, which a guess hits with probability of a half to a quarter."""
    total = sum(kinds.values())
    return (kinds.get("truth", 0) + kinds.get("letter", 0)) / total if total else 0.0


def check_card(
    card: DataCard,
    *,
    data_dir: str | Path | None = None,
    rows: Iterable[tuple[int, Row | BadRow]] | None = None,
    check_golds: CheckGolds | None = None,
    tokenizer: ChatTokenizer | None = None,
    against: Sequence[str] | None = None,
    embedder: Any = None,
    max_tokens: int | None = None,
) -> CheckReport:
    """Check every row: readable, fields, gold, duplicates, contamination, lengths, template round trip.

    Args:
        rows: numbered rows instead of those that the card names.
        check_golds: must accept each gold, e.g. ``VerifierPool.check_golds``; none: not checked, which the report says.
        tokenizer: the student's, for lengths, template and round trip; none: not checked, and the report says so.
        against: cards of evaluation sets; default: those that the card names.
        max_tokens: prompt and trace together must fit.
    """
    report = CheckReport(card.name)
    numbered = list(_examples(card, rows if rows is not None else card.rows(data_dir), report))
    report.examples = len(numbered)
    _check_size(card, report)
    report.faults += _duplicate_faults(numbered)
    for number, example in numbered:
        report.answer_kinds[answer_kind(example["answer"])] += 1
        report.faults += [RowFault(number, fault, _short(example["question"])) for fault in question_faults(example)]
    report.faults += _gold_faults(numbered, check_golds, report)
    report.faults += _contamination(card, numbered, against, data_dir, embedder, report)
    report.faults += _token_faults(card, numbered, tokenizer, max_tokens, report)
    return report


def _examples(
    card: DataCard, rows: Iterable[tuple[int, Row | BadRow]], report: CheckReport
) -> Iterator[tuple[int, Row]]:
    for number, row in rows:
        report.rows += 1
        if isinstance(row, BadRow):
            report.faults.append(RowFault(number, "unreadable row", f"{row.reason}: {row.excerpt!r}"))
            continue
        report.readable += 1
        report.faults += _field_faults(card, number, row)
        try:
            example = card.example(row)
        except DataCardError as error:
            report.faults.append(RowFault(number, "no example", str(error)))
            continue
        empty = [index for index, trace in enumerate(example.get("traces", ())) if not trace["text"].strip()]
        report.faults += [RowFault(number, "empty trace", f"trace {index}") for index in empty]
        yield number, example


def _field_faults(card: DataCard, number: int, row: Row) -> Iterator[RowFault]:
    for spec in card.fields:
        value = lookup(row, spec.name, default=None) if spec.name not in row else row[spec.name]
        if value is None:
            if not spec.optional and spec.type != "any":
                yield RowFault(number, f"field '{spec.name}' missing", f"the row has {', '.join(map(str, row))}")
        elif spec.type != "any" and not _is_a(value, spec.type):
            yield RowFault(number, f"field '{spec.name}' of wrong type", f"{type(value).__name__}, not {spec.type}")


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # Python counts a bool as an int
        return kind == "bool"
    return isinstance(value, _TYPES[kind])


def _check_size(card: DataCard, report: CheckReport) -> None:
    stated = [split.rows for split in card.splits if split.origin == "measured" and split.rows is not None]
    if stated and card.source.file is not None and report.rows not in (sum(stated), *stated):
        report.faults.append(RowFault(0, "row count", f"{report.rows} rows; the card says {sum(stated)}"))


def _duplicate_faults(numbered: Sequence[tuple[int, Row]]) -> Iterator[RowFault]:
    ids: dict[str, int] = {}
    questions: dict[bytes, tuple[int, str]] = {}
    for number, example in numbered:
        if (identity := example.get("id")) is not None:
            first = ids.setdefault(identity, number)
            if first != number:
                yield RowFault(number, "duplicate id", f"'{identity}' is also row {first}")
        options = example.get("options") or {}
        key = text_key(example["question"] + "\n" + "\n".join(map(str, options.values())))
        first, answer = questions.setdefault(key, (number, example["answer"]))
        if first != number:
            same = answer == example["answer"]
            kind = "duplicate question" if same else "duplicate question with another gold"
            yield RowFault(number, kind, f"row {first}" + ("" if same else f": {answer!r} and {example['answer']!r}"))


def _gold_faults(
    numbered: Sequence[tuple[int, Row]], check_golds: CheckGolds | None, report: CheckReport
) -> Iterator[RowFault]:
    if check_golds is None:
        report.skipped.append("golds (no verifier)")
        return
    verdicts = check_golds([example for _, example in numbered])
    for (number, example), verdict in zip(numbered, verdicts, strict=True):
        if verdict.score != 1.0:
            yield RowFault(number, "gold not accepted by its verifier", f"{example['answer'][:60]!r}: {verdict.reason}")


def _contamination(
    card: DataCard,
    numbered: Sequence[tuple[int, Row]],
    against: Sequence[str] | None,
    data_dir: str | Path | None,
    embedder: Any,
    report: CheckReport,
) -> Iterator[RowFault]:
    sets = card.decontamination.check_against if against is None else against
    if not sets:
        report.skipped.append("contamination (no evaluation sets named)")
        return
    from rlkd.data.curate.decontaminate import EvalIndex, load_eval_questions

    index = EvalIndex(load_eval_questions(sets, None if data_dir is None else str(data_dir)), embedder=embedder)
    if embedder is None:
        report.skipped.append("paraphrases of evaluation questions (no embedding model)")
    matches = index.matches([example["question"] for _, example in numbered])
    for (number, _), match in zip(numbered, matches, strict=True):
        if match is not None:
            where = f"{match.eval_set} {match.eval_id}"
            yield RowFault(
                number, f"contaminated ({match.rule})", f"{where}, {match.score:.2f}: {_short(match.eval_question)}"
            )


def _token_faults(
    card: DataCard,
    numbered: Sequence[tuple[int, Row]],
    tokenizer: ChatTokenizer | None,
    max_tokens: int | None,
    report: CheckReport,
) -> Iterator[RowFault]:
    if tokenizer is None:
        report.skipped.append("token lengths, template and round trip (no tokenizer)")
        return
    template = template_faults(tokenizer)
    report.notes += [fault.detail for fault in template if fault.kind in HARMLESS]
    yield from (RowFault(0, f"template: {each.kind}", each.detail) for each in template if each.kind not in HARMLESS)
    if any(fault.kind in ("no_template", "no_eos") for fault in template):
        return  # no row can be trained on
    lengths: dict[str, list[int]] = defaultdict(list)
    for number, example in numbered:
        yield from _row_token_faults(number, card.prompt(example), example, tokenizer, max_tokens, lengths)
    report.lengths = {name: _quantiles(values) for name, values in lengths.items()}


def _row_token_faults(
    number: int,
    question: str,
    example: Row,
    tokenizer: ChatTokenizer,
    max_tokens: int | None,
    lengths: dict[str, list[int]],
) -> Iterator[RowFault]:
    """A row's tokens as training encodes them."""
    messages = [{"role": "user", "content": question}]
    prompt = render(tokenizer, messages, generate=True)
    size, longest = len(encode(tokenizer, prompt)), 1  # an empty answer is one end-of-turn token
    lengths["prompt tokens"].append(size)
    texts = [trace["text"] for trace in example.get("traces", ())]
    faults: list[TemplateFault | None] = [round_trip_fault(tokenizer, text) for text in (question, *texts)]
    for text in texts:
        try:
            ids = encode_answer(tokenizer, messages, text, prompt=prompt)
        except RecipeError as error:
            yield RowFault(number, "not trainable with this template", str(error))
            continue
        lengths["trace tokens"].append(len(ids))
        longest = max(longest, len(ids))
        faults.append(inner_end_fault(ids, ids[-1]))
    if max_tokens is not None and size + longest > max_tokens:
        yield RowFault(number, "too long", f"{size + longest} tokens of {max_tokens}")
    yield from (RowFault(number, fault.kind, fault.detail) for fault in faults if fault is not None)


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    ranks = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(last, int(share * len(ordered)))] for name, share in ranks.items()}


def _short(text: str) -> str:
    return repr(text if len(text) <= 70 else text[:67] + "...")
