"""Second turns and critiques to fine-tune on before anything is sampled: another row's solution is the attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd.data.turns import TurnBuilder
from rlkd.records import Prompt, Rollout, RolloutGroup
from rlkd.rollout.feedback import Attempt, build_feedback
from rlkd.trainer.context import Run


@dataclass(frozen=True)
class SecondTurn:
    """What a second answer continues, and the critic's prompt with the feedback as its answer."""

    prompt_ids: tuple[int, ...]
    critique: tuple[tuple[int, ...], tuple[int, ...]]


def second_turns(run: Run, prompts: Sequence[Prompt]) -> dict[int, SecondTurn]:
    """For each of ``prompts``, all with a solution: its own prompt, the next row's solution, the feedback on that.

    None where the next row's solution answers this row too, or could not be judged.
    """
    spec = run.recipe.feedback
    assert spec is not None
    run.console.status(f"feedback on {len(prompts)} attempts, each the solution of another row")
    groups = [
        RolloutGroup(prompt, (_attempt(run, other),))
        for prompt, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True)
    ]
    verdicts = run.verify(groups, counted=False)  # wrong on purpose
    attempts = [
        Attempt(group.prompt.example, group.rollouts[0].text, verdict)
        for group, verdict in zip(groups, verdicts, strict=True)
    ]
    turns, found = TurnBuilder(run.builder, spec), {}
    for at, text in enumerate(build_feedback(spec.source).comment(attempts)):
        if text is not None and (verdicts[at].score or 0.0) < 1.0:
            attempt, said = groups[at].rollouts[0], turns.fit(text)[0]
            found[at] = SecondTurn(
                turns.second_prompt(prompts[at], attempt.completion_ids, said),
                turns.critique(prompts[at].example, attempt.text, said),
            )
    return found


def _attempt(run: Run, prompt: Prompt) -> Rollout:
    solution = prompt.example.solution
    assert solution is not None
    ids = run.builder.completion_ids(prompt.example, prompt)
    blank = (0.0,) * len(ids)  # never sampled
    return Rollout(ids, blank, "stop", solution, seed=0, min_version=0, max_version=0)
