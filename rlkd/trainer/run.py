"""One run from recipe to summary: claim the folder, prepare models and data, go through the stages."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from reward.pool import VerifierPool
from rlkd.checkpoint import read_json, write_json
from rlkd.cluster import Cluster, check_fit, settle, sharing, slow_precisions, this_machine
from rlkd.data.privileged import PrivilegedBuilder
from rlkd.data.prompt import PromptBuilder
from rlkd.data.source import Loaded, load_held_in, load_sources, tokenizer_texts
from rlkd.errors import RecipeError
from rlkd.launch import Launch
from rlkd.models import check_windows, load_tokenizer, materialise
from rlkd.preflight import check_references, model_specs, where_of
from rlkd.recipe import Recipe
from rlkd.recipe.schema import OfflineStage, RlStage, SftStage, Stage
from rlkd.records import Example, Prompt
from rlkd.trainer.console import Console
from rlkd.trainer.context import Run
from rlkd.trainer.contract import check_tokens
from rlkd.trainer.folder import RunFolder, fingerprint, rows_fingerprint
from rlkd.trainer.foreign import as_teacher
from rlkd.trainer.offline import prepare_offline, run_offline
from rlkd.trainer.pair_sources import check_sources
from rlkd.trainer.rl import RlTrainer
from rlkd.trainer.sft import run_sft


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    root: Path | None = None,
    launch: Launch | None = None,
) -> dict[str, Any]:
    """Run every stage of a recipe.

    Args:
        out: run folder; default ``runs/<name>``.
        resume: accept a folder with a finished run (an unfinished one of the same recipe is always continued).
        root: folder that relative data paths start at; default: the working directory.
        launch: the launcher's settings; default: none.

    Returns: the content of ``summary.json``.
    Raises: RlkdError of the kind of the fault; the run folder keeps everything that was finished.
    """
    recipe = (launch or Launch()).resolve(recipe)
    check_references(recipe, root or Path.cwd())
    console, begun = Console(), time.monotonic()
    folder = RunFolder.open(out or Path("runs") / recipe.name, recipe, resume=resume)
    try:
        finished = folder.finished()
        if finished is not None:
            console.final(finished, str(folder.path))
            return finished
        console.heading(f"{recipe.name} -> {folder.path}" + ("  (continuing)" if folder.resuming else ""))
        return _run_stages(recipe, folder, console, root or Path.cwd(), begun)
    finally:
        folder.lock.release()


def _run_stages(recipe: Recipe, folder: RunFolder, console: Console, root: Path, begun: float) -> dict[str, Any]:
    if "RAY_ADDRESS" not in os.environ:  # else the cluster's GPUs count, once it is joined
        check_fit(recipe, this_machine())
    root = root / recipe.data.dir if recipe.data.dir else root
    check_sources(recipe, root)
    data = _load_data(recipe, root, console)
    models = _prepare_models(recipe, folder, data[0].examples)
    check_windows(recipe, models)
    tokenizer = load_tokenizer(models["policy"])
    builder = PromptBuilder(tokenizer, recipe.data)
    verifier = recipe.verifier
    with (
        VerifierPool(
            {"name": verifier.kind, **verifier.options},
            workers=verifier.workers,
            time_limit_s=verifier.time_limit_s,
            memory_limit_mb=verifier.memory_limit_mb,
        ) as pool,
        Cluster(folder.path / "logs", recipe.cluster.start_deadline_s, console.note) as cluster,
    ):
        check_fit(recipe, cluster.hardware)
        settled = settle(recipe, cluster.hardware)
        if cluster.hardware.on_gpu and settled.cluster.placement == "colocated":
            console.note(f"placement: {sharing(settled, cluster.hardware)}")
        for slow in slow_precisions(recipe, cluster.hardware):
            console.note(slow)
        rows = {
            f"data.{name}": rows_fingerprint(part.examples) for name, part in zip(("train", "eval"), data, strict=True)
        }
        prints = {name: fingerprint(path) for name, path in models.items()}
        folder.write_manifest(recipe, cluster.hardware, prints, rows)
        prompts = [
            _prompts(recipe, builder, pool, part, name, console)
            for part, name in zip(data, ("train", "eval"), strict=True)
        ]
        prompts[0] = _attach_privileged(recipe, builder, prompts[0], console)
        run = Run(settled, folder, cluster, console, tokenizer, builder, prompts[0], prompts[1], pool)
        check_tokens(run, models)
        prepare_offline(run, models, root)
        evaluations = _go(run, models, root)
        summary = _summary(run, evaluations, time.monotonic() - begun)
    _publish_policy(folder, evaluations["policy_folder"])
    write_json(folder.path / "summary.json", summary)
    console.final(summary, str(folder.path))
    return summary


# ---------------------------------------------------------------- preparation


def _load_data(recipe: Recipe, root: Path, console: Console) -> tuple[Loaded, Loaded]:
    eval_data = load_sources(recipe.data.eval, where="data.eval", root=root) if recipe.data.eval else Loaded()
    train_data = load_held_in(recipe.data.train, eval_data.examples, where="data.train", root=root)
    for name, loaded in (("train", train_data), ("eval", eval_data)):
        _report_exclusions(console, name, loaded.excluded)
    return train_data, eval_data


def _report_exclusions(console: Console, name: str, excluded: Counter[str]) -> None:
    for reason, count in excluded.items():
        console.note(f"data.{name}: {count} rows left out: {reason}")


def _prepare_models(recipe: Recipe, folder: RunFolder, examples: Iterable[Example]) -> dict[str, Path]:
    texts = partial(tokenizer_texts, examples)
    return {
        name: materialise(spec, folder.path / "models" / name, where=where_of(name), seed=recipe.seed, texts=texts)
        for name, spec in model_specs(recipe).items()
    }


def _prompts(
    recipe: Recipe, builder: PromptBuilder, pool: VerifierPool, loaded: Loaded, name: str, console: Console
) -> list[Prompt]:
    """Rendered prompts of usable rows: gold accepted by the verifier, prompt within the window."""
    examples = loaded.examples
    if not examples:
        return []
    excluded: Counter[str] = Counter()
    if recipe.data.check_golds:
        verdicts = pool.check_golds([example.for_verifier() for example in examples])
        usable = [example for example, verdict in zip(examples, verdicts, strict=True) if not verdict.abstained]
        excluded["the verifier rejects the row's own gold answer"] = len(examples) - len(usable)
        examples = usable
    prompts, long = builder.prompts(examples, max_tokens=recipe.rollout.max_prompt_tokens)
    _report_exclusions(console, name, +(excluded + long))
    if not prompts:
        raise RecipeError(f"data.{name}: no row is left of {len(loaded.examples)}; left out: {dict(excluded + long)}")
    return prompts


def _attach_privileged(recipe: Recipe, builder: PromptBuilder, prompts: list[Prompt], console: Console) -> list[Prompt]:
    """Training prompts with what the teacher sees; what cannot be used is left out, counted and shown."""
    privileged = PrivilegedBuilder.of(recipe, builder)
    if privileged is None:
        return prompts
    attached = privileged.attach(prompts)
    _report_exclusions(console, "train", attached.excluded)
    for reason, count in attached.noted.items():
        console.note(f"data.train: {count} of {len(attached.prompts)} rows: {reason}")
    return attached.prompts


# ---------------------------------------------------------------- stages


def _go(run: Run, models: dict[str, Path], root: Path) -> dict[str, Any]:
    """Each stage feeds the next; finished ones are skipped. Returns evaluations and the last policy folder."""
    current = dict(models)
    per_stage: dict[str, Any] = {}
    found: dict[str, Any] = {"before": None, "after": None, "per_stage": per_stage, "steps": 0, "offline_updates": 0}
    for index, stage in enumerate(run.recipe.stages):
        target = stage.target if isinstance(stage, SftStage) else "policy"
        if target == "teacher" and "teacher" not in models:
            run.console.note(f"{stage.name}: skipped, objective '{run.recipe.objective.kind}' reads no teacher")
            continue
        place = run.folder.stage(index, stage.name)
        done = place / "done.json"
        if done.exists():
            record = read_json(done)
            run.console.status(f"{stage.name}: finished before")
        else:
            if not isinstance(stage, SftStage) and found["before"] is None:
                found["before"] = found["after"] or _before(run, place, current["policy"])
            record = {"before": found["before"], **_run_stage(run, stage, place, current, root)}
            write_json(done, record)
        if not isinstance(stage, SftStage):
            found["before"] = found["before"] or record["before"]
            found["steps" if isinstance(stage, RlStage) else "offline_updates"] += record["result"]["steps"]
        run.metrics_position = max(run.metrics_position, int(record.get("metrics_position", 0)))
        _restore_totals(run, record)
        current[target] = place / target
        per_stage[stage.name] = record["eval"]
        if target == "policy":
            found["after"] = record["eval"]
    found["policy_folder"] = current["policy"]
    return found


def _before(run: Run, place: Path, policy: Path) -> dict[str, Any] | None:
    """Accuracy of the policy that enters the first RL or offline stage, measured once."""
    if not run.eval_prompts:
        return None
    target = place / "before.json"
    if target.exists():
        return read_json(target)["eval"]  # type: ignore[no-any-return]
    run.start_rollouts(policy)
    found = run.evaluate(run.rollouts, "before", weights=policy)  # type: ignore[arg-type]
    place.mkdir(parents=True, exist_ok=True)
    write_json(target, {"eval": found})
    return found


def _run_stage(run: Run, stage: Stage, place: Path, current: dict[str, Path], root: Path) -> dict[str, Any]:
    if isinstance(stage, SftStage):
        output = place / stage.target
        if stage.target == "teacher" and run.recipe.objective.kind == "alm":
            run = as_teacher(run, current["teacher"])
        result = run_sft(run, stage, source=current[stage.target], output=output, root=root)
        return {"result": result, "eval": _evaluate_folder(run, stage.name, output, stage.target), **_totals(run)}
    shutil.rmtree(place / "policy", ignore_errors=True)
    if isinstance(stage, OfflineStage):
        result = run_offline(run, stage, place=place, models=current, root=root)
    else:
        trainer = RlTrainer(
            run=run,
            stage=stage,
            source=current["policy"],
            teacher_folders={name: folder for name, folder in current.items() if name != "policy"},
            checkpoints=run.folder.path / "checkpoints" / stage.name,
        )
        result = trainer.train(place / "policy")
    evaluation = _evaluate_folder(run, stage.name, place / "policy", "policy")
    return {"result": result, "metrics_position": run.metrics_position, "eval": evaluation, **_totals(run)}


def _evaluate_folder(run: Run, label: str, folder: Path, target: str) -> dict[str, Any] | None:
    if not run.eval_prompts:
        return None
    if target == "policy":
        run.start_rollouts(folder)
        return run.evaluate(run.rollouts, label, weights=folder)  # type: ignore[arg-type]
    # A teacher has another architecture than the engines that serve the policy: an engine of its own, for a moment.
    run.turn("sleep")
    lone = dataclasses.replace(run, rollouts=None)
    lone.start_rollouts(folder, kind="TeacherEvaluation")
    found = lone.evaluate(lone.rollouts, label)  # type: ignore[arg-type]
    lone.rollouts.stop()  # type: ignore[union-attr]
    run.turn("wake")
    return found


def _totals(run: Run) -> dict[str, Any]:
    return {"tokens": dict(run.tokens), "abstained": run.abstained, "gap": dict(run.gap)}


def _restore_totals(run: Run, record: dict[str, Any]) -> None:
    run.tokens, run.abstained, run.gap = dict(record["tokens"]), int(record["abstained"]), dict(record["gap"])


# ---------------------------------------------------------------- end


def _summary(run: Run, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "name": run.recipe.name,
        "status": "finished",
        "steps": found["steps"],
        "offline_updates": found["offline_updates"],
        "wall_s": round(seconds, 1),
        "tokens": run.tokens,
        "eval": {name: found[name] for name in ("before", "after", "per_stage")},
        "gap": run.gap,
        "abstained": run.abstained,
    }


def _publish_policy(folder: RunFolder, source: Path) -> None:
    """``policy/``: the final model, in place at once."""
    target, half = folder.path / "policy", folder.path / ".policy.tmp"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    shutil.rmtree(target, ignore_errors=True)
    half.rename(target)
