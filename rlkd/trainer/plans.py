"""Which plan an objective follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlkd.data.turns import TurnBuilder
from rlkd.recipe.objectives import AlmObjective, OpsdObjective, PiDistillObjective, RltfObjective
from rlkd.records import Prompt, Rollout
from rlkd.rollout.feedback import build_feedback
from rlkd.trainer.alm import AlmPlan, read_teachers
from rlkd.trainer.fleet import Sampling, sample
from rlkd.trainer.plan import PiDistillPlan, SelfDistillPlan, StepPlan
from rlkd.trainer.rltf import RltfPlan
from rlkd.trainer.sampling import derive_seed

if TYPE_CHECKING:
    from rlkd.trainer.rl import RlTrainer


def build_plan(trainer: RlTrainer) -> StepPlan:
    """The plan of the recipe's objective."""
    recipe, score_other = trainer.run.recipe, trainer.score_other
    if isinstance(recipe.objective, OpsdObjective):
        return SelfDistillPlan(recipe, score_other)
    if isinstance(recipe.objective, PiDistillObjective):
        return PiDistillPlan(recipe, score_other)
    if isinstance(recipe.objective, RltfObjective):
        return _rltf(trainer)
    if isinstance(recipe.objective, AlmObjective):
        assert trainer.teacher is not None
        readers = read_teachers(trainer.teacher.folders, trainer.run.tokenizer, recipe.data)
        return AlmPlan(recipe, score_other, teacher=trainer.teacher, readers=readers)
    return StepPlan(recipe, score_other)


def _rltf(trainer: RlTrainer) -> RltfPlan:
    run, recipe = trainer.run, trainer.run.recipe
    assert recipe.feedback is not None

    def sample_turn(prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]], step: int) -> list[Rollout]:
        seeds = [derive_seed(recipe.seed, trainer.stage.name, step, "second turn", i) for i in range(len(prompts))]
        sampling = Sampling(1, recipe.rollout.temperature, recipe.rollout.max_new_tokens)
        groups = sample(trainer.rollouts, prompts, seeds, sampling, run.tokenizer, ids=ids).groups()
        return [group.rollouts[0] for group in groups]

    turns = TurnBuilder(run.builder, recipe.feedback)
    # fails here, before anything is sampled, when the template cannot continue its own turns
    turns.second_prompt(run.train_prompts[0], (), "feedback")
    return RltfPlan(
        recipe,
        trainer.score_other,
        turns=turns,
        source=build_feedback(recipe.feedback.source),
        sample_turn=sample_turn,
        verify=run.verify,
    )
