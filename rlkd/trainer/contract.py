"""The scoring contract: policy, engine and teacher mean the same tokens by the same numbers, or the run stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.verdict import Verdict
from rlkd.data.turns import TurnBuilder
from rlkd.errors import RolloutError, TeacherError
from rlkd.learner.policy import check_logits
from rlkd.preflight import where_of
from rlkd.recipe import Recipe
from rlkd.recipe.checks import has_rl, needs_teacher
from rlkd.recipe.privileged import JudgeFeedback, RuleFeedback, ServerTeacher
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.records import Prompt, TrainRow
from rlkd.rollout.feedback import Attempt, build_feedback
from rlkd.teacher.server_teacher import ServerTeacherWorker
from rlkd.trainer.alm import read_teachers
from rlkd.trainer.context import Run
from rlkd.trainer.fleet import Fleet, Sampling, Sequences, sample, score
from rlkd.trainer.learners import Learners
from rlkd.trainer.sampling import derive_seed
from rlkd.trainer.teachers import TeacherPanel


@dataclass(frozen=True)
class Bounds:
    """Largest tolerated difference of log-probs on the same tokens and weights, nats."""

    mean: float
    maximum: float

    @classmethod
    def of(cls, recipe: Recipe) -> Bounds:
        """The recipe's, else by precision: rounding alone stays a factor of ten or more below these."""
        exact = (recipe.learner.precision or "fp32") == "fp32"
        mean, maximum = (1e-3, 5e-2) if exact else (0.1, 4.0)
        return cls(recipe.contract.max_mean_gap or mean, recipe.contract.max_gap or maximum)


def compare(
    left: Sequence[Sequence[float]], right: Sequence[Sequence[float]], *, names: tuple[str, str], bounds: Bounds
) -> tuple[float, float]:
    """(mean, max) of |left - right| over all tokens.

    Raises: RolloutError when lengths differ (nothing is cut to fit) or a bound is exceeded.
    """
    gaps: list[float] = []
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        if len(one) != len(other):
            raise RolloutError(f"sequence {index}: {names[0]} scored {len(one)} tokens, {names[1]} {len(other)}")
        gaps += [abs(a - b) for a, b in zip(one, other, strict=True)]
    mean, peak = sum(gaps) / max(1, len(gaps)), max(gaps, default=0.0)
    if not (mean <= bounds.mean and peak <= bounds.maximum):
        raise RolloutError(
            f"{names[0]} and {names[1]} differ on the same tokens and weights: mean {mean:.2e}, max {peak:.2e} nats; "
            f"allowed {bounds.mean:.0e} and {bounds.maximum:.0e} (contract.max_mean_gap, contract.max_gap). "
            "Check engine.dtype and learner.precision, the temperature, and that the model's attention is supported"
        )
    return mean, peak


def check_contract(run: Run, rollouts: Fleet, learners: Learners, teacher: TeacherPanel | None) -> None:
    """Same tokens, known weights, every path: learner, rollout engine (sampled and prompt), teacher."""
    bounds = Bounds.of(run.recipe)
    prompts = run.train_prompts[:4]
    seeds = [derive_seed(run.recipe.seed, "contract", index) for index in range(len(prompts))]
    sampling = Sampling(2, run.recipe.rollout.temperature, min(32, run.recipe.rollout.max_new_tokens))
    groups = sample(rollouts, prompts, seeds, sampling, run.tokenizer).groups()
    rows = [
        TrainRow(index, group.prompt.token_ids, r.completion_ids, r.rollout_logprobs, advantage=0.0)
        for index, group in enumerate(groups)
        for r in group.rollouts
    ]
    sequences = [(row.prompt_ids, row.completion_ids) for row in rows]
    learned = learners.call("score", rows)
    sampled = [row.rollout_logprobs for row in rows]
    names = ("the rollout engine's sampling log-probs", "the learner's")
    mean, peak = compare(sampled, learned, names=names, bounds=bounds)
    text = f"sampled vs learner: mean {mean:.1e}, max {peak:.1e}"
    if run.recipe.rollout.temperature == 1.0:
        dealt = score(rollouts, sequences)
        prompted = dealt.in_order(dealt.results())
        compare(prompted, learned, names=("the rollout engine's prompt log-probs", "the learner's"), bounds=bounds)
    if teacher is not None and teacher.shares_tokens:
        text += _check_teachers(teacher, learners, run.tokenizer, sequences, bounds)
    run.console.status(f"scoring contract holds ({text} nats)")


def _check_teachers(
    teacher: TeacherPanel, learners: Learners, tokenizer: Any, sequences: Sequences, bounds: Bounds
) -> str:
    """Every teacher whose weights are here against the learner's pass on them; a server must mean the same tokens."""
    text = ""
    for name, fleet in teacher.fleets.items():
        dealt = score(fleet, sequences)
        found = dealt.in_order(dealt.results())
        if name in teacher.folders:
            call = learners.workers[0].submit("score_with", str(teacher.folders[name]), sequences)
            known = call.result(teacher.recipe.cluster.step_deadline_s)
            names = (f"the teacher worker ({name})", "the learner's forward pass on the teacher's weights")
            mean, peak = compare(found, known, names=names, bounds=bounds)
            text += f"; {name} vs learner's pass: mean {mean:.1e}, max {peak:.1e}"
        else:
            dealt = fleet.map("spelled", sequences)
            check_spelling(tokenizer, sequences, dealt.in_order(dealt.results()), where=where_of(name))
            text += f"; {name} means the same tokens"
    return text


def check_tokens(run: Run, models: dict[str, Path]) -> None:
    """What an RL stage will ask of tokenizers, rows and servers, asked before the first stage.

    Args:
        models: the folders of policy and teachers as the run starts; no stage changes their tokenizers.

    Raises: TeacherError for a teacher with other tokens, or a server that cannot score; RolloutError for a judge that
        fails; RecipeError for a row without a teacher, a model whose logits the learner's pass cannot make, or a chat
        template that is missing or cannot continue a first turn.
    """
    recipe = run.recipe
    if not has_rl(recipe):
        return
    check_logits(models["policy"])
    if needs_teacher(recipe):
        panel = TeacherPanel.of(run, models)  # looks up every row's teacher
        if panel.shares_tokens:
            for folder in panel.folders.values():
                check_teacher_tokenizer(models["policy"], folder)
                check_logits(folder)  # the learner's pass repeats its scores
            for tokenizer in panel.served_tokenizers():
                check_same_tokens(run.tokenizer, tokenizer)
            _ask_teachers(run)
        else:
            read_teachers(panel.folders, run.tokenizer, recipe.data)
    if recipe.feedback is not None:
        turns = TurnBuilder(run.builder, recipe.feedback)
        turns.second_prompt(run.train_prompts[0], (run.tokenizer.eos_token_id,), "feedback")
        _ask_judge(recipe.feedback.source, run.train_prompts[:4])


def _ask_teachers(run: Run) -> None:
    """One request to every teacher's server, as a step will ask it. Raises: TeacherError for one that can't answer."""
    ids = run.train_prompts[0].teacher_ids
    sequences = [(ids[:1], ids[1:])]
    for name, spec in separate_teachers(run.recipe).items():
        if not isinstance(spec, ServerTeacher):
            continue
        server = ServerTeacherWorker(spec)
        if spec.transport == "top_k":
            server.top_k(sequences, k=spec.top_k)
        else:
            server.score(sequences)
        check_spelling(run.tokenizer, sequences, server.spelled(sequences), where=where_of(name))


def _ask_judge(source: RuleFeedback | JudgeFeedback, prompts: Sequence[Prompt]) -> None:
    """Comments on right answers, from a judge on a server. Raises: RolloutError when too few come."""
    if isinstance(source, JudgeFeedback):
        answers = [(prompt.example, f"The answer is {prompt.example.answer}.") for prompt in prompts]
        build_feedback(source).comment([Attempt(example, text, Verdict.right()) for example, text in answers])


def check_spelling(
    tokenizer: Any, sequences: Sequences, spelled: Sequence[Sequence[str | None]], *, where: str
) -> None:
    """Whether a server means by token ids what the policy means: it may serve another model than was thought.

    Args:
        spelled: the server's text of each completion token. Blanks at the ends don't count, as servers restore those
            that decoding one token loses; neither does a token that is no whole character.

    Raises: TeacherError naming the first token that stands for another text.
    """
    for (_, completion), texts in zip(sequences, spelled, strict=True):
        for token, theirs in zip(completion, texts, strict=True):
            mine = str(tokenizer.decode([token]))
            if theirs is None or "\N{REPLACEMENT CHARACTER}" in mine or theirs.strip() == mine.strip():
                continue
            raise TeacherError(
                f"{where}: its server reads token {token} as {theirs!r}, the policy as {mine!r}: it serves a "
                "model with another tokenizer. Serve one with the policy's, and name it in url and model"
            )


def check_teacher_tokenizer(policy: Path, teacher: Path) -> None:
    """Token-level distillation needs one tokenizer. Raises: TeacherError saying which part differs."""
    from rlkd.models import load_tokenizer

    mine, theirs = load_tokenizer(policy), load_tokenizer(teacher)
    check_same_tokens(mine, theirs)
    sizes = [_vocab_size(folder) for folder in (policy, teacher)]
    if min(sizes) < max(mine.get_vocab().values()) + 1:
        raise TeacherError(f"config.vocab_size is {sizes} (policy, teacher), smaller than the tokenizer's {len(mine)}")


def check_same_tokens(mine: Any, theirs: Any) -> None:
    """Vocabulary, special tokens and splitting of two tokenizers. Raises: TeacherError saying which part differs."""
    if mine.get_vocab() != theirs.get_vocab():
        foreign = sorted(set(mine.get_vocab().items()) ^ set(theirs.get_vocab().items()), key=lambda item: item[1])
        raise TeacherError(
            f"teacher.model: another vocabulary than the policy's ({len(mine)} and {len(theirs)} tokens; first "
            f"difference: {foreign[0]}); use a teacher with the same tokenizer"
        )
    for name in ("eos_token_id", "bos_token_id"):
        if getattr(mine, name) != getattr(theirs, name):
            raise TeacherError(f"teacher.model: {name} is {getattr(theirs, name)}, the policy's {getattr(mine, name)}")
    probe = "3 + 4 = 7, 1/2 and \\boxed{7}\n"
    if mine(probe)["input_ids"] != theirs(probe)["input_ids"]:
        raise TeacherError("teacher.model: same vocabulary, but it splits text differently (merges or normaliser)")


def _vocab_size(folder: Path) -> int:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"])
