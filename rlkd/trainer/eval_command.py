"""``rlkd eval``: any model over any card, on the same rollout workers and verifier as training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.pool import VerifierPool
from rlkd.checkpoint import write_json
from rlkd.cluster import Cluster, check_fit, settle
from rlkd.data.cards import load_card
from rlkd.data.prompt import PromptBuilder
from rlkd.data.rows import Row, write_rows
from rlkd.data.source import load_sources
from rlkd.errors import RecipeError
from rlkd.evaluate import ProblemScore, by_problem, summarise
from rlkd.launch import Launch
from rlkd.models import context_length, load_tokenizer, materialise
from rlkd.recipe import Recipe, validate_recipe
from rlkd.records import Prompt
from rlkd.trainer.console import Console
from rlkd.trainer.context import Run
from rlkd.trainer.eval_parts import measure_in_parts
from rlkd.trainer.folder import RunFolder, fingerprint


@dataclass(frozen=True)
class EvalJob:
    """What to measure."""

    model: str
    card: str
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    max_prompt_tokens: int = 1024
    stop: int | None = None
    seed: int = 0

    def recipe(self) -> Recipe:
        """The job as a recipe without stages. Raises: DataCardError, RecipeError."""
        card = load_card(self.card)
        packaged = self.model.startswith("package:")
        policy = (
            {"kind": "packaged", "package": self.model.removeprefix("package:")}
            if packaged
            else {"kind": "pretrained", "path": self.model}
        )
        verifier = {"name": card.verifier} if isinstance(card.verifier, str) else dict(card.verifier)
        problems = {"kind": "card", "name": self.card, "stop": self.stop}
        raw = {
            "name": f"eval-{card.name}",
            "seed": self.seed,
            "policy": policy,
            "data": {"train": problems, "eval": problems, "prompt": card.prompt_template},
            "verifier": {"kind": verifier.pop("name"), "options": verifier},
            "rollout": {"max_prompt_tokens": self.max_prompt_tokens, "max_new_tokens": self.max_new_tokens},
            "eval": {"samples": self.samples, "temperature": self.temperature, "top_p": self.top_p},
        }
        return Launch.from_environment().resolve(validate_recipe(raw, where=f"rlkd eval {self.model} {self.card}"))


def evaluate_model(job: EvalJob, out: Path) -> dict[str, Any]:
    """Measure and write ``out/summary.json`` and ``out/problems.jsonl``; a killed call goes on where it stopped.

    Returns: the summary's content.

    Raises: RecipeError, DataCardError or CheckpointError before any engine starts, RolloutError or ClusterError after.
    """
    recipe, console = job.recipe(), Console()
    folder = RunFolder.open(out, recipe, resume=True)
    try:
        model = materialise(recipe.policy, out / "models" / "policy", where="MODEL", seed=0, texts=tuple)
        parts = out / "stages" / f"eval-{fingerprint(model)}" / "sampled"
        recipe = _fitted(recipe, model)
        tokenizer = load_tokenizer(model)
        loaded = load_sources(recipe.data.eval or (), where=f"card {job.card}", root=Path.cwd())
        builder = PromptBuilder(tokenizer, recipe.data)
        prompts, long = builder.prompts(loaded.examples, max_tokens=recipe.rollout.max_prompt_tokens)
        for reason, count in (loaded.excluded + long).items():
            console.note(f"{count} rows left out: {reason}")
        if not prompts:
            raise RecipeError(f"card {job.card}: no row is left; left out: {dict(loaded.excluded + long)}")
        spec = recipe.verifier
        with (
            VerifierPool(
                {"name": spec.kind, **spec.options},
                workers=spec.workers,
                time_limit_s=spec.time_limit_s,
                memory_limit_mb=spec.memory_limit_mb,
            ) as pool,
            Cluster(out / "logs", recipe.cluster.start_deadline_s, console.note) as cluster,
        ):
            check_fit(recipe, cluster.hardware)
            recipe = settle(recipe, cluster.hardware)
            run = Run(recipe, folder, cluster, console, tokenizer, builder, prompts, prompts, pool)
            run.start_rollouts(model)
            groups, verdicts = measure_in_parts(run, job.card, parts)
            figures = summarise(groups, verdicts, pool.verify_batch)
        console.evaluation(job.card, figures)
        scores = by_problem(groups, verdicts)
        write_rows(out / "problems.jsonl", problem_rows(load_card(job.card).name, prompts, scores))
        summary = {"name": recipe.name, "status": "finished", "model": job.model, "eval": figures}
        write_json(out / "summary.json", summary)
        shutil.rmtree(out / "stages")  # the next call measures anew
        return summary
    finally:
        folder.lock.release()


def problem_rows(card: str, prompts: Sequence[Prompt], scores: Mapping[str, ProblemScore]) -> list[Row]:
    """What each problem scored, under its id in the card: the ``pass_rates`` of a curation of the same card.

    A problem whose every verdict abstained has no pass rate.
    """
    rows: list[Row] = []
    for prompt in prompts:
        example, score = prompt.example, scores.get(prompt.example.id)
        figures = {"pass_rate": score and score.score, "mean_tokens": score and score.tokens}
        rows.append({"id": example.id.removeprefix(f"{card}-"), "question": example.question, **figures})
    return rows


def _fitted(recipe: Recipe, model: Path) -> Recipe:
    """With the prompt budget that the model's window leaves. Raises: RecipeError when that is next to nothing."""
    window, completion = context_length(model), recipe.rollout.max_new_tokens
    room = window - completion - 1
    if room < window // 8:
        raise RecipeError(
            f"--max-new-tokens: {completion} leaves {max(0, room)} of the model's {window} tokens for the prompt; "
            f"write {window // 2} or less"
        )
    budget = min(recipe.rollout.max_prompt_tokens, room)
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"max_prompt_tokens": budget})})
