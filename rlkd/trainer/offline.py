"""The offline stage: pairs of right and wrong traces through the learner, watched for collapse."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkd.checkpoint import Checkpoint, Checkpoints
from rlkd.cluster import gather
from rlkd.errors import RecipeError
from rlkd.learner.learner import Update
from rlkd.learner.loss import Denominators
from rlkd.learner.packing import split_groups
from rlkd.metrics import MetricsLog
from rlkd.recipe.offline import reads_wrong
from rlkd.recipe.offline_checks import offline_stages
from rlkd.recipe.schema import OfflineStage
from rlkd.records import TrainRow
from rlkd.trainer.assemble import share_update
from rlkd.trainer.collapse import CollapseDetector
from rlkd.trainer.console import Bar
from rlkd.trainer.context import Run
from rlkd.trainer.learners import Learners
from rlkd.trainer.pair_file import Pair, PairFile
from rlkd.trainer.pair_sources import gather_pairs
from rlkd.trainer.publication import Publication, probe_of
from rlkd.trainer.sampling import derive_seed, prompts_of_step


def pair_rows(pairs: Sequence[Pair], *, wrong: bool) -> list[TrainRow]:
    """A pair's right and, where it is read, wrong trace in one group: they share their prompt and stay on one rank."""
    rows: list[TrainRow] = []
    for group, pair in enumerate(pairs):
        for term, ids in (("right", pair.right_ids), ("wrong", pair.wrong_ids))[: 1 + wrong]:
            row = TrainRow(group, pair.prompt_ids, ids, (), 0.0, len(rows), term=term)  # type: ignore[arg-type]
            rows.append(row)
    return rows


def count_updates(stage: OfflineStage, pairs: int) -> int:
    """The stage's updates. Epochs are cut to whole batches, as in the paper (53,175 pairs by 32: 1,661)."""
    if stage.steps is not None:
        return stage.steps
    return max(1, int((stage.epochs or 0.0) * pairs / stage.batch_size + 1e-9))


def check_size(stage: OfflineStage, pairs: int) -> None:
    """Raises: RecipeError when there are too few pairs for what the stage asks, which only their count can tell."""
    updates, where = count_updates(stage, pairs), f"stages.{stage.name}"
    if stage.batch_size > pairs:
        raise RecipeError(f"{where}.batch_size: {stage.batch_size} pairs an update, but there are {pairs}; lower it")
    if stage.optim.warmup_steps > updates:
        raise RecipeError(
            f"{where}.optim.warmup_steps: {stage.optim.warmup_steps} exceeds the {updates} updates of {pairs} pairs"
        )


@dataclass
class OfflineTrainer:
    """One offline stage from a policy folder to a policy folder."""

    run: Run
    stage: OfflineStage
    pairs: PairFile
    source: Path
    checkpoints: Path

    def __post_init__(self) -> None:
        self.learners = Learners(self.run)
        self.detector = CollapseDetector(self.stage.collapse)
        self.total = count_updates(self.stage, len(self.pairs))

    def train(self, output: Path) -> dict[str, Any]:
        """Run or continue the stage and write the policy to ``output``.

        Raises: CollapseError when both kinds of traces lose their probability and the recipe says stop.
        """
        run, every = self.run, self.run.recipe.checkpoint.every
        checkpoints = Checkpoints(self.checkpoints, keep=run.recipe.checkpoint.keep)
        if run.recipe.eval.every:
            run.start_rollouts(self.source)  # a run that goes on may not have measured anything yet
        run.turn("sleep")
        self._start()
        latest = checkpoints.latest()
        started = self._restore(latest) if latest else 0
        log = run.open_metrics(latest)
        with closing(log), run.console.bar(self.stage.name, self.total) as bar:
            for step in range(started, self.total):
                log.write(self._step(step, bar) | self._evaluate(step + 1))
                self._stop_if_collapsed()
                if (step + 1) % every == 0 and step + 1 < self.total:
                    self._save(checkpoints, step + 1, log)
            run.metrics_position = log.position()
        self.learners.write_policy(output)
        self.learners.stop()
        run.turn("wake")
        return {"steps": self.total, "pairs": len(self.pairs), "collapses": self.detector.found}

    def _start(self) -> None:
        offline = self.stage.model_dump(mode="json")
        calls = self.learners.start(self.stage.name, self.source, total_updates=self.total, offline=offline)
        gather(calls, self.run.recipe.cluster.start_deadline_s)

    # ------------------------------------------------------------ one update

    def _step(self, step: int, bar: Bar) -> dict[str, Any]:
        run, begun = self.run, time.perf_counter()
        seed = derive_seed(run.recipe.seed, self.stage.name)
        chosen = prompts_of_step(self.pairs, seed=seed, step=step, per_step=self.stage.batch_size)
        rows = pair_rows(chosen, wrong=reads_wrong(self.stage.objective))
        figures, _ = self.learners.train([[share] for share in self._shares(rows, pairs=len(chosen))], step=step)
        seconds = time.perf_counter() - begun
        tokens = sum(len(row.completion_ids) for row in rows)
        run.tokens["trained"] += tokens
        row = {"stage": self.stage.name, "step": step + 1, "pairs": len(chosen), **figures}
        row |= {"tokens": tokens, "tokens_per_s": tokens / seconds, "step_s": seconds}
        if "wrong_logprob" in figures:
            row["margin"] = figures["right_logprob"] - figures["wrong_logprob"]
            self._watch(row)
        bar.update(step + 1, _headline(row))
        return row

    def _evaluate(self, step: int) -> dict[str, Any]:
        """Held-out figures after an update that has them; the last one's policy is measured by the run."""
        run, every = self.run, self.run.recipe.eval.every
        if not every or step % every != 0 or step == self.total:
            return {}
        assert run.rollouts is not None
        run.turn("wake")
        self.publication.publish(run.rollouts, step)
        found = run.evaluate(run.rollouts, f"{self.stage.name}, update {step}")
        run.turn("sleep")
        return {"eval/pass@1": found["pass@1"] if found else None}

    @cached_property
    def publication(self) -> Publication:
        """The way of the weights to the engines."""
        return Publication(self.run, self.learners, probe_of(self.run, self.run.eval_prompts[0]))

    def _watch(self, row: dict[str, Any]) -> None:
        found = self.detector.update(row["step"], (row["right_logprob"], row["wrong_logprob"], row["grad_norm"]))
        if found is not None:
            row["event"] = "collapse"
            self.run.console.note(f"{self.stage.name}: {found}")

    def _shares(self, rows: Sequence[TrainRow], *, pairs: int) -> list[Update]:
        return share_update(
            split_groups(rows),
            Denominators(policy=float(pairs), distill=0.0),
            ranks=self.learners.ranks,
            token_budget=self.run.recipe.learner.tokens_per_micro_batch,
        )

    def _stop_if_collapsed(self) -> None:
        if self.detector.latest is not None and self.stage.collapse.action == "stop":
            raise self.detector.latest.error(self.stage.name)

    # ------------------------------------------------------------ checkpoints

    def _save(self, checkpoints: Checkpoints, step: int, log: MetricsLog) -> None:
        manifest = {
            "stage": self.stage.name,
            "updates": step,
            "metrics_position": log.position(),
            "tokens": self.run.tokens,
            "abstained": self.run.abstained,
            "collapse": self.detector.state(),
            "ranks": self.learners.ranks,
        }
        checkpoints.save(step, manifest, self.learners.save)

    def _restore(self, latest: Checkpoint) -> int:
        manifest, run = latest.manifest, self.run
        self.learners.load(latest)
        run.tokens, run.abstained = manifest["tokens"], manifest["abstained"]
        self.detector.restore(**manifest["collapse"])
        run.console.status(f"continuing {self.stage.name} after update {latest.step} from {latest.folder}")
        return latest.step


def _headline(row: dict[str, Any]) -> str:
    parts = [f"loss {row['loss']:.3f}"]
    parts += [f"{term} {row[f'{term}_logprob']:.3f}" for term in ("right", "wrong") if f"{term}_logprob" in row]
    parts += [f"|g| {row['grad_norm']:.2g}", f"H {row.get('entropy', 0.0):.2f}"]
    return "  ".join([*parts, f"{row['tokens_per_s']:,.0f} tok/s"])


# ---------------------------------------------------------------- the run's side


def prepare_offline(run: Run, models: dict[str, Path], root: Path) -> None:
    """Before the first stage: the pairs that don't wait for a trained model.

    Raises: RecipeError when none or too few are left.
    """
    for index, stage in offline_stages(run.recipe):
        if stage.pairs.kind == "sampled":
            continue
        place = run.folder.stage(index, stage.name)
        pairs = gather_pairs(run, stage, place, models=models, root=root)
        try:
            check_size(stage, len(pairs))
        except RecipeError:
            shutil.rmtree(place)  # quickly gathered again; left, it would bind the folder to the wrong recipe
            raise


def run_offline(run: Run, stage: OfflineStage, *, place: Path, models: dict[str, Path], root: Path) -> dict[str, Any]:
    """Gather what is still to be gathered, then train ``models['policy']`` into ``place/policy``."""
    pairs = gather_pairs(run, stage, place, models=models, root=root)
    check_size(stage, len(pairs))
    checkpoints = run.folder.path / "checkpoints" / stage.name
    trainer = OfflineTrainer(run=run, stage=stage, pairs=pairs, source=models["policy"], checkpoints=checkpoints)
    return trainer.train(place / "policy")
