"""The RL stage: sample, judge, score with the teacher, learn, publish. One loop for every objective and schedule."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkd.checkpoint import Checkpoint, Checkpoints
from rlkd.cluster import gather
from rlkd.errors import RolloutError
from rlkd.metrics import MetricsLog
from rlkd.recipe.checks import needs_teacher
from rlkd.recipe.schema import RlStage
from rlkd.records import Rollout, RolloutGroup, TrainRow
from rlkd.trainer.assemble import Judged, plan_updates
from rlkd.trainer.console import Bar
from rlkd.trainer.context import Run
from rlkd.trainer.contract import Bounds, check_contract
from rlkd.trainer.early_stop import EarlyStop
from rlkd.trainer.fleet import Fleet, Sampled, Sampling, Turn, sample
from rlkd.trainer.learners import Learners
from rlkd.trainer.plan import StepPlan
from rlkd.trainer.plans import build_plan
from rlkd.trainer.presumed import Presumed
from rlkd.trainer.publication import Publication, probe_of
from rlkd.trainer.rollout_log import RolloutLog
from rlkd.trainer.sampling import derive_seed, prompts_of_step
from rlkd.trainer.step_figures import Clock, headline, outcome
from rlkd.trainer.teachers import TeacherPanel


@dataclass
class RlTrainer:
    """One RL stage from a policy folder to a policy folder."""

    run: Run
    stage: RlStage
    source: Path
    teacher_folders: dict[str, Path]
    checkpoints: Path
    teacher: TeacherPanel | None = None
    version: int = 0
    pending: deque[tuple[int, Sampled | list[RolloutGroup]]] = field(default_factory=deque)
    early_stop: EarlyStop | None = None

    def __post_init__(self) -> None:
        self.learners = Learners(self.run)
        self.presumed = Presumed(self.run.recipe, self.run.console.note)

    @cached_property
    def plan(self) -> StepPlan:
        """How the objective turns rollouts into rows."""
        return build_plan(self)

    def train(self, output: Path) -> dict[str, Any]:
        """Run or continue the stage and write the policy to ``output``."""
        run, checkpoints = self.run, Checkpoints(self.checkpoints, keep=self.run.recipe.checkpoint.keep)
        self._start_workers()
        latest = checkpoints.latest()
        started = self._restore(latest) if latest else 0
        self.publication.publish(self.rollouts, self.version)
        if latest is None:
            check_contract(run, self.rollouts, self.learners, self.teacher)
            self._watch()
        log = run.open_metrics(latest)
        rollout_log = RolloutLog(run.folder.path / "rollouts" / self.stage.name, run.recipe.log, run.tokenizer)
        with closing(log), run.console.bar(self.stage.name, self.stage.steps) as bar:
            done, stops = started, False
            while done < self.stage.steps and not stops:
                log.write(self._step(done, rollout_log, bar))
                done += 1
                stops = self._after_step(done, checkpoints, log)
            run.metrics_position = log.position()
        best = self._write_output(done, output)
        self._stop()
        return {"steps": done} | best

    def _after_step(self, step: int, checkpoints: Checkpoints, log: MetricsLog) -> bool:
        """Keep what must be kept. Returns: whether the stage ends here, before its last step."""
        watch = self.early_stop
        if watch is not None and watch.stops:
            self.run.console.note(
                f"{self.stage.name}: stopped after step {step}; best of the watched problems: {watch.best:.1%} at step "
                f"{watch.best_step}, whose policy is kept"
            )
            return True
        is_best = watch is not None and watch.best_step == step
        if watch is not None and is_best:
            self.learners.write_policy(watch.make_room(step))
        if step < self.stage.steps and (is_best or step % self.run.recipe.checkpoint.every == 0):
            self._save(checkpoints, step, log)
            if watch is not None:  # not before: the checkpoint that a killed run goes back to names the older one
                watch.prune()
        return False

    def _write_output(self, step: int, output: Path) -> dict[str, Any]:
        """The policy that the stage hands on: its last one, or the best one of an early stop."""
        watch = self.early_stop
        if watch is None:
            self.learners.write_policy(output)
            return {}
        source = watch.policy_folder(watch.best_step) if watch.best_step else self.source
        half = output.with_name(f".{output.name}.tmp")
        shutil.copytree(source, half, dirs_exist_ok=True)
        half.rename(output)
        return {"stopped_early": step < self.stage.steps, "best_step": watch.best_step}

    def _watch(self) -> None:
        """Early stop: the policy that enters the stage is the first to beat."""
        spec = self.run.recipe.eval.early_stop
        if spec is None:
            return
        self.early_stop = EarlyStop(spec, self.checkpoints)
        self.run.evaluate(self.rollouts, f"{self.stage.name}, start")
        self.early_stop.begin(self.run.problem_scores)

    # ------------------------------------------------------------ start

    def _start_workers(self) -> None:
        run, cluster = self.run, self.run.recipe.cluster
        updates = self.stage.steps * run.recipe.learner.updates_per_step
        self.teacher = TeacherPanel.of(run, self.teacher_folders) if needs_teacher(run.recipe) else None
        if cluster.placement == "colocated":  # engines first: vLLM claims its share of what is free when it starts
            run.start_rollouts(self.source)
            run.turn("sleep")
            if self.teacher is not None:
                self.teacher.start_in_turn(cluster.teacher_workers, cluster.start_deadline_s)
            gather(self.learners.start(self.stage.name, self.source, total_updates=updates), cluster.start_deadline_s)
            self._turn("wake")
        else:
            calls = self.learners.start(self.stage.name, self.source, total_updates=updates)
            run.start_rollouts(self.source)
            if self.teacher is not None:
                calls += self.teacher.start(cluster.teacher_workers)
            gather(calls, cluster.start_deadline_s)
        _ = self.plan  # its checks come before the first sample
        if self.teacher is not None and self.teacher.transport == "hidden":
            folders = {name: str(folder) for name, folder in self.teacher.folders.items()}
            gather(self.learners.submit("hold_heads", folders), cluster.start_deadline_s)

    def _turn(self, turn: Turn) -> None:
        """Engines and teachers that share the learners' GPUs give them away, or take them back."""
        self.run.turn(turn)
        if self.teacher is not None:
            self.teacher.turn(turn)

    @property
    def rollouts(self) -> Fleet:
        if self.run.rollouts is None:
            raise AssertionError("rollout workers start with the stage")
        return self.run.rollouts

    # ------------------------------------------------------------ one step

    def _step(self, step: int, rollout_log: RolloutLog, bar: Bar) -> dict[str, Any]:
        run, recipe = self.run, self.run.recipe
        clock = Clock()
        groups = self._groups(step)
        clock.lap("generate_s")
        self._check_versions(groups, step)
        teacher = self.teacher.ask(groups) if self.teacher and self.teacher.shares_tokens else None
        verdicts = run.verify(groups)
        clock.lap("judge_s")
        logprobs, views = teacher.answers() if teacher else (None, None)
        judged = Judged(groups, verdicts, logprobs, self.version, views=views)
        rows, method_figures = self.plan.rows(judged, step)
        clock.lap("teacher_s")
        shares = plan_updates(recipe, rows, ranks=self.learners.ranks)
        self._turn("sleep")
        figures, kept = self.learners.train(shares, step=step, keep=rollout_log.wanted(step + 1))
        self.version += 1
        clock.lap("learn_s")
        self._turn("wake")
        self.publication.publish(self.rollouts, self.version)
        clock.lap("publish_s")
        self._check_gap(figures, step)
        row = {"stage": self.stage.name, "step": step + 1, "policy_version": self.version}
        row |= outcome(judged, rows) | method_figures | figures | clock.seconds
        self.presumed.update(step + 1, row)
        row |= self._throughput(judged, rows, clock.total, further=int(method_figures.get("second_turn_tokens", 0)))
        row |= self._evaluate(step + 1)
        rollout_log.write(step + 1, judged, rows, kept, self.plan.notes)
        bar.update(step + 1, headline(row))
        return row

    def _evaluate(self, step: int) -> dict[str, Any]:
        """Held-out figures of a step that has them. Without an early stop the last step is measured by the run."""
        every, is_last = self.run.recipe.eval.every, step == self.stage.steps
        if not every or not (step % every == 0 or is_last) or (is_last and self.early_stop is None):
            return {}
        found = self.run.evaluate(self.rollouts, f"step {step}")
        figures: dict[str, Any] = {"eval/pass@1": found["pass@1"] if found else None}
        if self.early_stop is not None:
            figures["eval/watched"] = self.early_stop.note(step, self.run.problem_scores)
        return figures

    def _groups(self, step: int) -> list[RolloutGroup]:
        """Rollouts of a step; asynchronous schedules keep ``max_staleness`` further steps in flight."""
        ahead = self.run.recipe.cluster.max_staleness if self.run.recipe.cluster.schedule == "async" else 0
        queued = {queued_step for queued_step, _ in self.pending}
        for coming in range(step, min(step + ahead + 1, self.stage.steps)):
            if coming not in queued:
                self.pending.append((coming, self._sample(coming)))
        found_step, found = self.pending.popleft()
        if found_step != step:
            raise RolloutError(f"step {step} found rollouts of step {found_step} in the queue")
        return found.groups() if isinstance(found, Sampled) else found

    def _sample(self, step: int) -> Sampled:
        recipe = self.run.recipe
        rollout = recipe.rollout
        prompts = prompts_of_step(
            self.run.train_prompts, seed=recipe.seed, step=step, per_step=rollout.prompts_per_step
        )
        seeds = [derive_seed(recipe.seed, self.stage.name, step, index) for index in range(len(prompts))]
        sampling = Sampling(rollout.group_size, rollout.temperature, rollout.max_new_tokens)
        ids = [self.plan.sampling_ids(prompt) for prompt in prompts]
        return sample(self.rollouts, prompts, seeds, sampling, self.run.tokenizer, ids=ids)

    def _check_versions(self, groups: Sequence[RolloutGroup], step: int) -> None:
        allowed = self.run.recipe.cluster.max_staleness
        oldest = min(rollout.min_version for group in groups for rollout in group.rollouts)
        if self.version - oldest > allowed:
            raise RolloutError(
                f"step {step}: rollouts of version {oldest} for policy {self.version}; allowed lag {allowed}"
            )

    def score_other(self, rows: Sequence[TrainRow], exact: str | None) -> list[list[float]]:
        """Completions in their rows' other context, by the self-teacher."""
        return list(self.learners.call("score_other", list(rows), exact=exact))

    @cached_property
    def publication(self) -> Publication:
        """The way of the weights to the engines."""
        return Publication(self.run, self.learners, probe_of(self.run, self.run.train_prompts[0]))

    def _check_gap(self, figures: dict[str, float], step: int) -> None:
        mean, peak = (figures.get(f"rollout_policy_logprob_gap/{name}", 0.0) for name in ("mean", "max"))
        self.run.gap = {"mean": max(self.run.gap["mean"], mean), "max": max(self.run.gap["max"], peak)}
        bounds = Bounds.of(self.run.recipe)
        stale = self.run.recipe.cluster.schedule == "async" and self.run.recipe.cluster.max_staleness > 0
        if not stale and (mean > bounds.mean or peak > bounds.maximum):
            raise RolloutError(
                f"step {step}: rollout_policy_logprob_gap mean {mean:.2e}, max {peak:.2e} nats exceeds contract bounds "
                f"{bounds.mean:.0e} and {bounds.maximum:.0e}; the engine no longer samples from the learner's policy"
            )

    def _throughput(self, judged: Judged, rows: Sequence[TrainRow], seconds: float, *, further: int) -> dict[str, Any]:
        tokens = further + sum(len(r.completion_ids) for group in judged.groups for r in group.rollouts)
        self.run.tokens["generated"] += tokens
        self.run.tokens["trained"] += sum(len(row.completion_ids) for row in rows if row.trained)
        return {
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "step_s": seconds,
            "workers_replaced": self.rollouts.replaced,
        }

    # ------------------------------------------------------------ checkpoints

    def _save(self, checkpoints: Checkpoints, step: int, log: MetricsLog) -> None:
        in_flight = [(coming, item.groups() if isinstance(item, Sampled) else item) for coming, item in self.pending]
        self.pending = deque(in_flight)

        def write(folder: Path) -> None:
            self.learners.save(folder)
            rollouts = [
                {"step": coming, "rollouts": [[asdict(r) for r in group.rollouts] for group in groups]}
                for coming, groups in in_flight
            ]
            (folder / "in_flight.json").write_text(json.dumps(rollouts), encoding="utf-8")

        manifest = {
            "stage": self.stage.name,
            "updates": step * self.run.recipe.learner.updates_per_step,
            "policy_version": self.version,
            "metrics_position": log.position(),
            "tokens": self.run.tokens,
            "abstained": self.run.abstained,
            "gap": self.run.gap,
            "ranks": self.learners.ranks,
            "early_stop": None if self.early_stop is None else self.early_stop.state(),
        }
        checkpoints.save(step, manifest, write)

    def _restore(self, latest: Checkpoint) -> int:
        manifest, run = latest.manifest, self.run
        self.learners.load(latest)
        self.version = int(manifest["policy_version"])
        run.tokens, run.abstained, run.gap = manifest["tokens"], manifest["abstained"], manifest["gap"]
        if run.recipe.eval.early_stop is not None:
            self.early_stop = EarlyStop(run.recipe.eval.early_stop, self.checkpoints)
            self.early_stop.restore(manifest["early_stop"])
        per_step = run.recipe.rollout.prompts_per_step
        for saved in json.loads((latest.folder / "in_flight.json").read_text(encoding="utf-8")):
            prompts = prompts_of_step(run.train_prompts, seed=run.recipe.seed, step=saved["step"], per_step=per_step)
            groups = [
                RolloutGroup(prompt, tuple(_rollout(item) for item in rollouts))
                for prompt, rollouts in zip(prompts, saved["rollouts"], strict=True)
            ]
            self.pending.append((saved["step"], groups))
        run.console.status(f"continuing {self.stage.name} after step {latest.step} from {latest.folder}")
        return latest.step

    def _stop(self) -> None:
        self.learners.stop()
        if self.teacher is not None:
            self.teacher.stop()


def _rollout(item: dict[str, Any]) -> Rollout:
    lists = {name: tuple(item[name]) for name in ("completion_ids", "rollout_logprobs")}
    return Rollout(**{**item, **lists})
