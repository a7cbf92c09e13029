"""RLTF's step: feedback on first answers, a second turn where it is needed, rows for every term."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from reward.verdict import Verdict
from rlkd.advantages import first_turn_advantages, turn_advantages
from rlkd.data.turns import TurnBuilder
from rlkd.learner.loss import coefficient
from rlkd.recipe.objectives import RltfObjective
from rlkd.recipe.privileged_checks import second_prompt_budget
from rlkd.records import Prompt, Rollout, RolloutGroup, TrainRow
from rlkd.rollout.feedback import Attempt, FeedbackSource
from rlkd.trainer.assemble import Judged, train_rows
from rlkd.trainer.plan import Figures, StepPlan

# prompts, the token ids that each second answer continues, and a name of the draw -> one rollout each
SampleTurn = Callable[[Sequence[Prompt], Sequence[tuple[int, ...]], int], list[Rollout]]
Verify = Callable[[Sequence[RolloutGroup]], list[Verdict]]


_COUNTED = (
    "feedback_failed",
    "feedback_cut",
    "second_turn_too_long",
    "second_turn_abstained",
    "critic_prompt_too_long",
)


@dataclass(frozen=True)
class Second:
    """A revised answer and what led to it."""

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RltfPlan(StepPlan):
    """Two-turn rollouts. Row order: first answers, second answers, revisions on the bare prompt, critiques."""

    turns: TurnBuilder
    source: FeedbackSource
    sample_turn: SampleTurn
    verify: Verify

    def rows(self, judged: Judged, step: int) -> tuple[list[TrainRow], Figures]:
        objective = self.recipe.objective
        assert isinstance(objective, RltfObjective)
        flat = [(group.prompt, rollout) for group in judged.groups for rollout in group.rollouts]
        counts: Counter[str] = Counter()
        teaches = coefficient(objective.feedback_coef, step) > 0
        feedback = self._feedback(flat, judged.verdicts, teaches, counts)
        seconds = self._second_turns(flat, judged.verdicts, feedback, step, counts)
        first, second, revised = self._credit(judged, seconds)
        rows = []
        for row, credit, verdict in zip(train_rows(self.recipe, judged), first, judged.verdicts, strict=True):
            judged_row = row.trained and not verdict.abstained
            rows.append(TrainRow(**{**vars(row), "advantage": credit, "trained": judged_row}))
        distils = coefficient(objective.self_distill_coef, step) > 0
        for at, turn in seconds.items():
            rows.append(self._row(rows[at], turn.prompt_ids, turn.rollout, second[at], "sampled", len(rows)))
        if distils:
            for at, turn in seconds.items():
                bare = flat[at][0].token_ids
                rows.append(self._row(rows[at], bare, turn.rollout, revised[at], "revision", len(rows)))
        if teaches:
            rows += self._critiques(rows, flat, feedback, counts)
        self._note(seconds, feedback)
        return rows, self._figures(judged, seconds, revised, counts)

    def _feedback(
        self, flat: list[tuple[Prompt, Rollout]], verdicts: list[Verdict], teaches: bool, counts: Counter[str]
    ) -> dict[int, str]:
        """Feedback by rollout: on answers that get a second turn, and on all when the policy learns to predict it."""
        wanted = [
            i for i, verdict in enumerate(verdicts) if not verdict.abstained and (teaches or self._goes_on(verdict))
        ]
        attempts = [Attempt(flat[i][0].example, flat[i][1].text, verdicts[i]) for i in wanted]
        found: dict[int, str] = {}
        for index, text in zip(wanted, self.source.comment(attempts), strict=True):
            if text is None:
                counts["feedback_failed"] += 1
                continue
            found[index], cut = self.turns.fit(text)
            counts["feedback_cut"] += cut
        return found

    def _goes_on(self, verdict: Verdict) -> bool:
        """Early termination: a right first answer ends the rollout."""
        early = getattr(self.recipe.objective, "early_termination", True)
        return verdict.score is not None and not (early and verdict.score >= 1.0)

    def _second_turns(
        self,
        flat: list[tuple[Prompt, Rollout]],
        verdicts: list[Verdict],
        feedback: dict[int, str],
        step: int,
        counts: Counter[str],
    ) -> dict[int, Second]:
        budget = second_prompt_budget(self.recipe)
        ids: dict[int, tuple[int, ...]] = {}
        for index, text in feedback.items():
            if not self._goes_on(verdicts[index]):
                continue
            prompt, rollout = flat[index]
            made = self.turns.second_prompt(prompt, rollout.completion_ids, text)
            if len(made) > budget:
                counts["second_turn_too_long"] += 1
            else:
                ids[index] = made
        if not ids:
            return {}
        prompts = [flat[index][0] for index in ids]
        rollouts = self.sample_turn(prompts, list(ids.values()), step)
        found = self.verify([RolloutGroup(p, (r,)) for p, r in zip(prompts, rollouts, strict=True)])
        turns = {}
        for (index, made), rollout, verdict in zip(ids.items(), rollouts, found, strict=True):
            if verdict.abstained:
                counts["second_turn_abstained"] += 1
            else:
                turns[index] = Second(made, rollout, verdict)
        return turns

    def _credit(self, judged: Judged, seconds: dict[int, Second]) -> tuple[list[float], list[float], list[float]]:
        """Advantages of first answers, second answers, and second answers on the bare prompt; 0 where none."""
        count = len(judged.verdicts)
        kept = torch.tensor([i for i, verdict in enumerate(judged.verdicts) if not verdict.abstained], dtype=torch.long)
        scores = torch.tensor([v.score or 0.0 for v in judged.verdicts], dtype=torch.float64)
        later = torch.tensor([seconds[i].verdict.score or 0.0 if i in seconds else 0.0 for i in range(count)]).double()
        has = torch.tensor([i in seconds for i in range(count)])
        groups = judged.group_ids()
        objective = self.recipe.objective
        assert isinstance(objective, RltfObjective)
        first, second = turn_advantages(
            first_scores=scores[kept],
            second_scores=later[kept],
            group_ids=groups[kept],
            has_second_turn=has[kept],
            discount=objective.discount,
        )
        revised = first_turn_advantages(
            first_scores=scores[kept], second_scores=later[kept], group_ids=groups[kept], has_second_turn=has[kept]
        )
        empty = torch.zeros(count, dtype=torch.float64)
        whole = [empty.index_copy(0, kept, values.double()).tolist() for values in (first, second, revised)]
        return whole[0], whole[1], whole[2]

    def _row(
        self, first: TrainRow, prompt_ids: tuple[int, ...], rollout: Rollout, credit: float, term: str, index: int
    ) -> TrainRow:
        cut = rollout.truncated and self.recipe.rollout.truncated == "mask"
        return TrainRow(
            group=first.group,
            prompt_ids=prompt_ids,
            completion_ids=rollout.completion_ids,
            rollout_logprobs=rollout.rollout_logprobs,
            advantage=credit,
            index=index,
            trained=not cut,
            staleness=first.staleness,
            term=term,  # type: ignore[arg-type]
        )

    def _critiques(
        self,
        rows: Sequence[TrainRow],
        flat: list[tuple[Prompt, Rollout]],
        feedback: dict[int, str],
        counts: Counter[str],
    ) -> list[TrainRow]:
        budget = second_prompt_budget(self.recipe)
        made: list[TrainRow] = []
        for at, text in feedback.items():
            prompt, rollout = flat[at]
            ids, said = self.turns.critique(prompt.example, rollout.text, text)
            if len(ids) > budget:
                counts["critic_prompt_too_long"] += 1
                continue
            blank = (0.0,) * len(said)  # never sampled: no ratio is taken on these tokens
            index = len(rows) + len(made)
            made.append(TrainRow(rows[at].group, ids, said, blank, 0.0, index, term="critique"))
        return made

    def _note(self, seconds: dict[int, Second], feedback: dict[int, str]) -> None:
        """For the rollout log."""
        self.notes.clear()
        for index, text in feedback.items():
            self.notes[index] = {"feedback": text}
            if index in seconds:
                turn = seconds[index]
                self.notes[index] |= {
                    "second_prompt_ids": list(turn.prompt_ids),
                    "second_completion": turn.rollout.text,
                    "second_token_ids": list(turn.rollout.completion_ids),
                    "second_score": turn.verdict.score,
                }

    def _figures(
        self, judged: Judged, seconds: dict[int, Second], revised: list[float], counts: Counter[str]
    ) -> Figures:
        total, went_on = max(1, len(judged.verdicts)), max(1, len(seconds))
        scores = [turn.verdict.score or 0.0 for turn in seconds.values()]
        figures = {
            "second_turns": len(seconds) / total,
            "second_turn_reward": sum(scores) / went_on,
            "revision_advantage": sum(revised[at] for at in seconds) / went_on,
            "second_turn_tokens": float(sum(len(turn.rollout.completion_ids) for turn in seconds.values())),
        }
        return figures | {name: float(counts[name]) for name in _COUNTED}
