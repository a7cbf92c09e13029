"""The SFT stage: worked solutions as token ids, TRL's trainer on the learner ranks, a model folder out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlkd.cluster import Pending, gather
from rlkd.data.source import load_held_in
from rlkd.errors import RecipeError
from rlkd.learner.trl_sft import checkpoint_step, finished, latest_checkpoint
from rlkd.recipe.privileged_checks import FEEDBACK_CONTEXTS
from rlkd.recipe.schema import SftStage
from rlkd.records import Prompt
from rlkd.trainer.context import Run
from rlkd.trainer.sampling import derive_seed
from rlkd.trainer.second_turns import SecondTurn, second_turns

SFT_WORKER = "rlkd.learner.trl_sft:SftWorker"


def run_sft(run: Run, stage: SftStage, *, source: Path, output: Path, root: Path) -> dict[str, Any]:
    """Fine-tune ``source`` into ``output``. A killed stage goes on from its last checkpoint, with equal results."""
    if (record := finished(output)) is not None:
        run.console.status(f"{stage.name}: trained before")
        return record
    pairs = _pairs(run, stage, root)
    output.parent.mkdir(parents=True, exist_ok=True)
    progress = output.parent / "progress.txt"
    resume = latest_checkpoint(output)
    done = 0 if resume is None else checkpoint_step(resume)
    _cut(progress, done)
    if done:
        run.console.status(f"{stage.name}: goes on after update {done} of {stage.steps}")
    run.turn("sleep")
    workers = run.spawn_learners(stage.name, kind="SftWorker")
    deadline = run.recipe.cluster.start_deadline_s
    address = run.cluster.address(workers[0])
    gather(
        [
            run.cluster.build(worker, SFT_WORKER, rank=rank, world_size=len(workers), address=address)
            for rank, worker in enumerate(workers)
        ],
        deadline,
    )
    calls = [
        worker.submit(
            "train",
            folder=str(source),
            output=str(output),
            pairs=pairs,
            stage=stage.model_dump(),
            learner=run.recipe.learner.model_dump(),
            seed=derive_seed(run.recipe.seed, stage.name),
            progress=str(progress),
            checkpoint=run.recipe.checkpoint.model_dump(),
            resume=None if resume is None else str(resume),
        )
        for worker in workers
    ]
    result = _follow(run, stage, calls, progress)
    for worker in workers:
        run.cluster.stop(worker)
    run.turn("wake")
    return result


def _pairs(run: Run, stage: SftStage, root: Path) -> list[tuple[list[int], list[int]]]:
    """(prompt_ids, completion_ids) of every solution that fits ``max_length``."""
    if stage.data is None:
        prompts = run.train_prompts
    else:
        held_out = [prompt.example for prompt in run.eval_prompts]
        where = f"stages.{stage.name}.data"
        loaded = load_held_in(stage.data, held_out, where=where, root=root)
        run.folder.check_rows(where, loaded.examples)
        prompts = [run.builder.prompt(example) for example in loaded.examples]
    if all(prompt.example.solution is None for prompt in prompts):
        raise RecipeError(
            f"stages.{stage.name}: none of its {len(prompts)} examples has a worked solution; map "
            "data.*.fields.solution, or use a reasoning-gym task that carries one (chain_sum, gsm_symbolic)"
        )
    prompts = [prompt for prompt in prompts if prompt.example.solution is not None]
    turns = second_turns(run, prompts) if FEEDBACK_CONTEXTS.intersection(stage.contexts) else {}
    pairs, long = [], 0
    for at, prompt in enumerate(prompts):
        completion = run.builder.completion_ids(prompt.example, prompt)
        for ids, said in _rows(prompt, completion, stage, turns.get(at)):
            if len(ids) + len(said) > stage.max_length:
                long += 1
            else:
                pairs.append((list(ids), list(said)))
    if long:
        run.console.note(
            f"{stage.name}: {long} of {long + len(pairs)} rows exceed max_length {stage.max_length}, left out"
        )
    if not pairs and not long:
        raise RecipeError(
            f"stages.{stage.name}.contexts: {stage.contexts} give no row: every attempt, which is the next example's "
            "solution, is right here too or could not be judged; add bare"
        )
    if not pairs:
        raise RecipeError(f"stages.{stage.name}.max_length: {stage.max_length} leaves none of {long} rows")
    return pairs


Row = tuple[tuple[int, ...], tuple[int, ...]]


def _rows(prompt: Prompt, completion: tuple[int, ...], stage: SftStage, turn: SecondTurn | None = None) -> list[Row]:
    """A model that starts from nothing has to learn to use what it is told before it can teach with it."""
    named = {"bare": (prompt.token_ids, completion), "privileged": (prompt.teacher_ids, completion)}
    if turn is not None:
        named |= {"second_turn": (turn.prompt_ids, completion), "critique": turn.critique}
    found = [named[name] for name in stage.contexts if name in named]
    return list(dict.fromkeys(found))  # a row without privileged text stands there once


def _cut(progress: Path, step: int) -> None:
    """Leave the lines up to ``step``; the rest will be written again."""
    lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
    progress.write_text("".join(f"{line}\n" for line in lines[:step]), encoding="utf-8")


def _follow(run: Run, stage: SftStage, calls: list[Pending], progress: Path) -> dict[str, Any]:
    """Show the loss while TRL trains; give up when no step was finished within the deadline."""
    import ray

    deadline = run.recipe.cluster.step_deadline_s
    moved, seen = time.monotonic(), ""
    waiting = {call.ref: call for call in calls}
    with run.console.bar(stage.name, stage.steps) as bar:
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0.5)
            for ref in ended:
                waiting.pop(ref).result(deadline)  # the others wait for a rank that failed
            text = progress.read_text(encoding="utf-8") if progress.exists() else ""
            if text != seen:
                moved, seen = time.monotonic(), text
                step, loss = text.splitlines()[-1].split()
                bar.update(int(step), f"loss {float(loss):.3f}")
            if waiting and time.monotonic() - moved > deadline:
                raise next(iter(waiting.values())).stuck(deadline)
        results = gather(calls, deadline)
        bar.update(stage.steps, f"loss {results[0]['loss']:.3f}")
    return dict(results[0])
