"""Each selection method against a random choice of as many traces: held-out accuracy of a student trained on them.

python tests/bench/selection.py --seeds 3

Small scratch models, real training: sums of two to four digits with worked steps. Two teachers are trained, one careful
(it writes its steps) and one hasty (it writes only results), and sample four traces of every problem; the student knows
two-term sums. A method keeps traces by the curation step of its name; of these, and of all traces for ``random``, one
number is drawn, and copies of the same student are trained on them, at the same settings, from the same order of seeds.
The task shows whether a method does what it claims in a place where it can be seen, not how large its gain is on
language.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from reward.registry import load
from rlkd.analysis.report import Cell, Table
from rlkd.data.curate import build_step, curate, curated_rows
from rlkd.data.curate.perplexity import question_prompt, score_traces
from rlkd.data.curate.score import TokenScorer, TokenScores, load_scorer
from rlkd.data.rows import Row
from rlkd.models.materialise import load_tokenizer, materialise
from rlkd.recipe.models import CharTokenizer, ScratchModel

TERMS = (2, 3, 4)
TEACHER_STEPS = 400
ALPHABET = "0123456789+=\n\\boxed{}"
VERIFIER = load("math")
Pair = tuple[str, str]


def problems(seed: int, size: int) -> list[Row]:
    """Distinct sums of digits up to 6, as many of each number of terms as there are; a line a step."""
    rng, seen, rows = random.Random(seed), set[str](), []
    for at in range(4 * size):
        terms = [rng.randrange(7) for _ in range(TERMS[at % len(TERMS)])]
        question = f"{'+'.join(map(str, terms))}="
        if question in seen:
            continue
        seen.add(question)
        sums = list(accumulate(terms))
        steps = [f"{left}+{term}={total}" for left, term, total in zip(sums, terms[1:], sums[1:], strict=False)]
        solution = "\n".join([*steps, f"\\boxed{{{sums[-1]}}}"])
        rows.append({"question": question, "answer": str(sums[-1]), "terms": len(terms), "solution": solution})
    return rows[:size]


class Student:
    """A small Llama on characters: trained on pairs of text, sampled from, saved for the steps' scorers."""

    def __init__(self, folder: Path, *, seed: int, state: dict[str, Tensor] | None = None) -> None:
        from transformers import AutoModelForCausalLM

        spec = ScratchModel(
            kind="scratch",
            hidden_size=64,
            intermediate_size=192,
            layers=2,
            heads=4,
            context_length=96,
            tokenizer=CharTokenizer(alphabet="".join(dict.fromkeys(ALPHABET))),
        )
        self.folder = materialise(spec, folder, where="bench", seed=seed, texts=lambda: ())
        self.tokenizer = load_tokenizer(self.folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(self.folder), dtype=torch.float32)
        if state is not None:
            self.model.load_state_dict(state)
        self.end = int(self.tokenizer.eos_token_id)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def train(self, pairs: Sequence[Pair], *, steps: int, seed: int, lr: float = 3e-3, batch_size: int = 16) -> Student:
        """Cross-entropy on the completions, cosine to zero."""
        encoded = [(self.ids(f"{prompt}\n"), [*self.ids(text), self.end]) for prompt, text in pairs]
        rng = random.Random(seed)
        optim = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
        order: list[int] = []
        for _ in range(steps):
            while len(order) < batch_size:
                order += rng.sample(range(len(encoded)), len(encoded))
            batch, order = [encoded[at] for at in order[:batch_size]], order[batch_size:]
            width = max(len(a) + len(b) for a, b in batch)
            ids = torch.full((len(batch), width), self.end)
            labels = torch.full((len(batch), width), -100)
            for at, (prompt, own) in enumerate(batch):
                ids[at, : len(prompt) + len(own)] = torch.tensor(prompt + own)
                labels[at, len(prompt) : len(prompt) + len(own)] = torch.tensor(own)
            loss = self.model(input_ids=ids, labels=labels).loss  # causal: what pads on the right is not seen
            optim.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optim.step()
            schedule.step()
        return self

    @torch.inference_mode()
    def answers(self, questions: Sequence[str], *, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """One completion a question; questions of one length share a batch, so that nothing is padded."""
        torch.manual_seed(seed)
        groups: dict[int, list[int]] = defaultdict(list)
        for at, question in enumerate(questions):
            groups[len(question)].append(at)
        out = [""] * len(questions)
        for group in groups.values():
            prompt = torch.tensor([self.ids(f"{questions[at]}\n") for at in group])
            drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
            found = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=36,
                pad_token_id=self.end,
                eos_token_id=self.end,
                **drawn,
            )
            for at, ids in zip(group, found[:, prompt.shape[1] :].tolist(), strict=True):
                cut = ids[: ids.index(self.end)] if self.end in ids else ids
                out[at] = self.tokenizer.decode(cut)
        return out

    def accuracy(self, held_out: Sequence[Row]) -> float:
        return float(np.mean(graded(held_out, self.answers([row["question"] for row in held_out]))))

    def scorer(self, folder: Path) -> TokenScorer:
        """Scores once what several methods ask for."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        score, known = load_scorer(folder), dict[Pair, TokenScores]()

        def remembered(pairs: Sequence[Pair]) -> list[TokenScores]:
            fresh = [pair for pair in dict.fromkeys(pairs) if pair not in known]
            known.update(zip(fresh, score(fresh), strict=True))
            return [known[pair] for pair in pairs]

        return remembered


def graded(rows: Sequence[Row], texts: Sequence[str]) -> list[bool]:
    return [VERIFIER.verify(text, row).score == 1.0 for row, text in zip(rows, texts, strict=True)]


@dataclass
class Pool:
    """Everything that a method may ask: rows with traces, models, pass rates, and the student to copy."""

    rows: list[Row]
    student: Student
    teacher_scorer: TokenScorer
    student_scorer: TokenScorer
    pass_rates: dict[int, float]
    held_out: list[Row]
    folder: Path
    seed: int

    def kept(self, spec: dict[str, Any], **parts: Any) -> list[Pair]:
        """What one step keeps, as training pairs."""
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            curate(iter(self.rows), [build_step(spec, **parts)], out)
            return pairs_of(list(curated_rows(out)))

    def score(self, pairs: Sequence[Pair], steps: int) -> float:
        """Held-out accuracy of a copy of the student, trained on the pairs."""
        copy = Student(self.student.folder, seed=0, state=self.student.model.state_dict())
        return copy.train(pairs, steps=steps, seed=self.seed).accuracy(self.held_out)


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    return [(row["question"], trace["text"]) for row in rows for trace in row["traces"]]


def make_pool(folder: Path, seed: int, rows: int, held_out: int) -> Pool:
    """Train teachers and student, sample two traces a problem from each teacher, measure the student's pass rates."""
    taught = problems(1000 + seed, 1500)
    careful = Student(folder / "scratch", seed=seed)
    hasty = Student(folder / "scratch", seed=seed)
    student = Student(folder / "scratch", seed=seed)
    careful.train([(row["question"], row["solution"]) for row in taught], steps=TEACHER_STEPS, seed=seed)
    hasty.train([(row["question"], row["solution"].splitlines()[-1]) for row in taught], steps=TEACHER_STEPS, seed=seed)
    known = [row for row in problems(2000 + seed, 1200) if row["terms"] == 2]
    student.train([(row["question"], row["solution"]) for row in known], steps=150, seed=seed)
    pool = problems(3000 + seed, rows)
    questions = [row["question"] for row in pool]
    seen = set(questions)
    for row in pool:
        row["traces"] = []
        del row["solution"]
    for name, teacher in (("careful", careful), ("hasty", hasty)):
        for draw in range(2):
            texts = teacher.answers(questions, temperature=1.0, seed=17 * draw + seed)
            for row, text in zip(pool, texts, strict=True):
                row["traces"].append({"text": text, "model": name})
    draws = [graded(pool, student.answers(questions, temperature=1.0, seed=seed + 5 * at)) for at in range(4)]
    rates = {number: float(np.mean(right)) for number, right in enumerate(zip(*draws, strict=True), start=1)}
    seen |= {row["question"] for row in taught}
    tested = [row for row in problems(4000 + seed, 3000) if row["question"] not in seen and row["terms"] > 2][:held_out]
    scorers = careful.scorer(folder / "careful"), student.scorer(folder / "student")
    print(
        f"seed {seed}: careful {careful.accuracy(tested):.1%}, hasty {hasty.accuracy(tested):.1%}, "
        f"student {student.accuracy(tested):.1%}",
        flush=True,
    )
    return Pool(pool, student, *scorers, rates, tested, folder, seed)


def methods(pool: Pool, steps: int) -> dict[str, Callable[[], list[Pair]]]:
    """Each method by the curation step of its name."""
    both = {"teacher": pool.teacher_scorer, "student": pool.student_scorer}

    def provenance(choose: str) -> Callable[[], list[Pair]]:
        return lambda: pool.kept({"step": "provenance_select", "choose": choose, "seed": pool.seed}, **both)

    def perplexity() -> list[Pair]:
        means = [mean for each in score_traces(pool.rows, pool.teacher_scorer, question_prompt) for mean in each]
        limit = float(np.exp(-np.nanmedian(means)))
        return pool.kept(
            {"step": "perplexity_filter", "max_perplexity": max(limit, 1.0001)}, scorer=pool.teacher_scorer
        )

    def difficulty() -> list[Pair]:
        step = {"step": "pass_rate_filter", "high": 0.75}
        return pool.kept(step, pass_rate=lambda rows: [pool.pass_rates[row["row"]] for row in rows])

    def verified() -> list[Pair]:
        judge = lambda items: [VERIFIER.verify(text, row) for text, row in items]  # noqa: E731
        return pool.kept({"step": "label_traces", "keep": "right"}, verify_batch=judge)

    def trial() -> list[Pair]:
        def run(sample: Path, _: Path) -> dict[str, Any]:
            from rlkd.data.rows import good_rows

            pairs = [(row["question"], row["solution"]) for row in good_rows(sample)]
            score = pool.score(pairs, steps // 2)
            return {"pass@1": score, "ci95": [score, score], "n": len(pool.held_out)}

        recipe = str(Path(__file__).parents[2] / "recipes" / "grpo.yaml")  # unread: the trial above trains in its place
        return pool.kept({"step": "teacher_trial", "recipe": recipe, "size": 100}, run=run)

    return {
        "one a problem, at random": provenance("random"),
        "provenance: teacher sentences (DAS)": provenance("count"),
        "longest": provenance("longest"),
        "length-matched to the first": provenance("length_matched"),
        "perplexity below the median": perplexity,
        "farthest two of four (DED)": lambda: pool.kept({"step": "farthest_traces", "keep": 2}),
        "difficulty: the student's pass rate <= 0.75": difficulty,
        "teacher trial (DED)": trial,
        "domain weights (DDK)": lambda: pool.kept(
            {"step": "domain_weights", "domain": "terms", "rows": len(pool.rows), "sample": 60}, **both
        ),
        "verified right": verified,
    }


def main(
    seeds: int = 3,
    rows: Annotated[int, typer.Option(help="problems of four traces each")] = 450,
    size: Annotated[int, typer.Option(help="traces that every student is trained on")] = 400,
    steps: int = 200,
    held_out: int = 200,
) -> None:
    """Print mean held-out accuracy over seeds, and each method's difference to random with a 95 % t interval."""
    from scipy.stats import t

    torch.set_num_threads(1)
    started = time.perf_counter()
    scores: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as work:
        for seed in range(seeds):
            folder = Path(work) / str(seed)
            pool = make_pool(folder, seed, rows, held_out)
            chosen = {"random": pairs_of(pool.rows)} | {name: make() for name, make in methods(pool, steps).items()}
            for name, pairs in chosen.items():
                rng = random.Random(seed)
                drawn = [
                    rng.sample(pairs, min(size, len(pairs))) for _ in range(2)
                ]  # two draws: less noise of the sample
                scores[name].append(float(np.mean([pool.score(each, steps) for each in drawn])))
                sizes[name].append(len(drawn[0]))
                print(f"  {name}: {scores[name][-1]:.1%} on {len(drawn[0])} of {len(pairs)}", flush=True)
    table: list[tuple[Cell, ...]] = []
    for name, found in scores.items():
        gaps = np.array(found) - np.array(scores["random"])
        half = float(t.ppf(0.975, seeds - 1) * gaps.std(ddof=1) / seeds**0.5) if seeds > 1 else float("nan")
        gap = None if name == "random" else f"{100 * gaps.mean():+.1f} ± {100 * half:.1f}"
        table.append((name, min(sizes[name]), f"{100 * np.mean(found):.1f} %", gap))
    columns = ("traces kept by", "traces", "held-out accuracy", "points over random, 95 % over seeds")
    title = f"{seeds} seeds, {size} traces each, {time.perf_counter() - started:.0f} s"
    print(Table(title, columns, tuple(table)).markdown())


if __name__ == "__main__":
    typer.run(main)
