"""pi-Distill, OPSD with a reward, RLTF and ALM: from rollouts to rows, and from rows to the loss that they claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer

from reward.pool import VerifierPool
from reward.verdict import Verdict
from rlkd import objectives
from rlkd.data.privileged import PrivilegedBuilder
from rlkd.data.prompt import PromptBuilder
from rlkd.data.token_bytes import starts_pretoken, token_bytes
from rlkd.data.turns import TurnBuilder
from rlkd.divergences import alm, chunk_logprobs
from rlkd.errors import RecipeError
from rlkd.learner.comparison import Comparison, HiddenComparison, Measure
from rlkd.learner.loss import Denominators
from rlkd.learner.privileged_loss import AlmLoss, PiDistillLoss, RltfLoss
from rlkd.learner.teacher_views import boundaries
from rlkd.learner.teaching import other_context
from rlkd.recipe import Recipe
from rlkd.recipe.coefficients import ConstantCoef
from rlkd.recipe.objectives import AlmObjective, PiDistillObjective, RltfObjective
from rlkd.recipe.privileged import FeedbackSpec, RuleFeedback
from rlkd.recipe.schema import SftStage
from rlkd.records import Chunks, Example, Prompt, Rollout, RolloutGroup, TrainRow
from rlkd.rollout.feedback import build_feedback
from rlkd.trainer.alm import BROKEN, Aligned, Aligner, _debiased, _plain, read_teachers
from rlkd.trainer.assemble import Judged, denominators, plan_updates
from rlkd.trainer.context import Run
from rlkd.trainer.plan import PiDistillPlan, SelfDistillPlan
from rlkd.trainer.rltf import RltfPlan
from rlkd.trainer.second_turns import second_turns
from rlkd.trainer.sft import _pairs

Make = Callable[..., Recipe]
FEEDBACK = {"source": {"kind": "rule", "hint": "{solution}"}, "max_tokens": 64, "max_prompt_tokens": 1200}


def _rollout(ids: Sequence[int], text: str = "x", seed: int = 0) -> Rollout:
    return Rollout(tuple(ids), tuple(-0.5 - 0.1 * i for i in range(len(ids))), "stop", text, seed, 0, 0)


def _groups(prompts: Sequence[Prompt], size: int) -> list[RolloutGroup]:
    return [
        RolloutGroup(p, tuple(_rollout(range(10 + g, 13 + g + r), f"try {r}") for r in range(size)))
        for g, p in enumerate(prompts)
    ]


def _zero(rows: Sequence[TrainRow], exact: str | None) -> list[list[float]]:
    del exact
    return [[0.0] * len(row.completion_ids) for row in rows]


@pytest.fixture
def prompts(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> list[Prompt]:
    """Two problems with a solution in the teacher's sight, and one without."""
    recipe = make_recipe(privileged__missing="plain")
    builder = PromptBuilder(tokenizer, recipe.data)
    chosen = [gsm8k[0], gsm8k[1], replace(gsm8k[2], solution=None)]
    privileged = PrivilegedBuilder.of(recipe, builder)
    assert privileged is not None
    return privileged.attach([builder.prompt(example) for example in chosen]).prompts


def _pi_recipe(make: Make, **changes: Any) -> Recipe:
    objective = {"kind": "pi_distill", "distill_coef": {"kind": "constant", "value": 0.5}, **changes}
    return make(
        objective=objective, teacher=None, privileged__missing="plain", advantage={"kind": "group", "scale": "none"}
    )


SCORES = [Verdict.right(), Verdict.wrong(), Verdict.wrong(), Verdict.right(), Verdict.right(), Verdict.wrong()]


def test_pi_distill_rows_are_two_views_and_plain_rl_without_privileged_text(
    make_recipe: Make, prompts: list[Prompt]
) -> None:
    recipe = _pi_recipe(make_recipe, kl_in="loss")
    plan = PiDistillPlan(recipe, _zero)
    judged = Judged(_groups(prompts, 2), SCORES, None, 0)
    rows, figures = plan.rows(judged, 0)
    assert [plan.sampling_ids(p) for p in prompts] == [p.teacher_ids for p in prompts]
    first, bare = rows[:6], rows[6:]
    assert [row.index for row in rows] == list(range(10))
    for row, prompt in zip(first, [p for p in prompts for _ in range(2)], strict=True):
        assert row.prompt_ids == prompt.teacher_ids
        assert row.distilled == (prompt.privileged is not None)
    for row, partner in zip(bare, first[:4], strict=True):
        assert row.term == "bare"
        assert row.prompt_ids == partner.teacher_prompt_ids == prompts[row.group].token_ids
        assert row.advantage == partner.advantage
        assert row.rollout_logprobs == partner.rollout_logprobs
    assert figures["privileged_rows"] == pytest.approx(4 / 6)
    # the two views of a rollout are one rollout: it is counted once
    counted = sum(len(row.completion_ids) for row in first)
    assert denominators(recipe, rows).policy == counted
    # and both views go into the same update, whatever the number of updates
    split = make_recipe(objective={"kind": "pi_distill"}, teacher=None, learner__updates_per_step=2)
    for update in plan_updates(split, rows, ranks=1)[0]:
        groups = {row.group for row in update.rows}
        assert {row.index for row in update.rows} == {row.index for row in rows if row.group in groups}


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_kl_in_the_reward_comes_off_before_centring(make_recipe: Make, prompts: list[Prompt], estimator: str) -> None:
    recipe = _pi_recipe(make_recipe, kl_estimator=estimator)
    asked: list[str | None] = []

    def score(rows: Sequence[TrainRow], exact: str | None) -> list[list[float]]:
        asked.append(exact)
        assert [row.prompt_ids for row in rows] == [p.teacher_ids for p in prompts for _ in range(2)]
        if exact:
            return [
                [0.2 * (row.index + 1) if row.teacher_prompt_ids else 0.0] * len(row.completion_ids) for row in rows
            ]
        return [[lp - 0.2 * (row.index + 1) for lp in row.rollout_logprobs] for row in rows]

    rows, figures = PiDistillPlan(recipe, score).rows(Judged(_groups(prompts, 2), SCORES, None, 0), 0)
    assert asked == ["reverse_kl" if estimator == "exact" else None]
    # rollout r of each group has 3 + r tokens; coefficient 0.5; the group without privileged text pays nothing
    penalty = [0.5 * 0.2 * (i + 1) * (3 + i % 2) if i < 4 else 0.0 for i in range(6)]
    shaped = [float(v.score or 0) - p for v, p in zip(SCORES, penalty, strict=True)]
    for i, row in enumerate(rows[:6]):
        pair = shaped[i - i % 2 : i - i % 2 + 2]
        assert row.advantage == pytest.approx(shaped[i] - sum(pair) / 2)
    assert figures["kl_penalty"] == pytest.approx(sum(penalty) / 4)
    assert all(row.teacher_prompt_ids is None for row in rows)  # nothing is compared a second time in the loss


def test_opsd_with_reward_may_place_its_kl_in_the_reward(make_recipe: Make, prompts: list[Prompt]) -> None:
    objective = {
        "kind": "opsd",
        "reward_coef": 1.0,
        "kl_in": "reward",
        "distill_coef": {"kind": "constant", "value": 0.5},
    }
    recipe = make_recipe(objective=objective, privileged__missing="plain", advantage={"kind": "group", "scale": "none"})

    def score(rows: Sequence[TrainRow], exact: str | None) -> list[list[float]]:
        assert exact is None
        assert all(row.teacher_prompt_ids == prompts[row.group].teacher_ids for row in rows if row.group < 2)
        return [[lp - 0.1 for lp in row.rollout_logprobs] for row in rows]

    rows, _ = SelfDistillPlan(recipe, score).rows(Judged(_groups(prompts, 2), SCORES, None, 0), 0)
    shaped = [1 - 0.5 * 0.1 * 3, -0.5 * 0.1 * 4]
    assert rows[0].advantage == pytest.approx(shaped[0] - sum(shaped) / 2)
    assert [row.distilled for row in rows] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pi_distill_loss_is_the_papers_over_rows_of_two_views(share: float) -> None:
    policy = tiny.model()
    both = tiny.two_context_rows(groups=3)
    for row in both:
        assert row.teacher_prompt_ids is not None
    views = [replace(r, prompt_ids=r.teacher_prompt_ids or (), teacher_prompt_ids=r.prompt_ids) for r in both]
    bare = [replace(r, term="bare", index=len(both) + r.index) for r in both]
    batch = tiny.batch_of([*views, *bare])
    count = float(sum(len(row.completion_ids) for row in both))
    objective = PiDistillObjective(teacher_share=ConstantCoef(value=share), kl_in="reward")
    signals = tiny.signals_of(batch, policy)
    loss, _ = PiDistillLoss(objective)(signals, Denominators(count, count), 0)

    wanted = torch.zeros((), dtype=torch.float64)
    for row in both:
        logprobs = [
            tiny.plain_logits(policy, prompt, row.completion_ids)
            .log_softmax(-1)
            .gather(1, torch.tensor(row.completion_ids)[:, None])
            .T
            for prompt in (row.teacher_prompt_ids or (), row.prompt_ids)
        ]
        sampled = torch.tensor([row.rollout_logprobs], dtype=torch.float64)
        advantages = torch.full_like(sampled, row.advantage)
        # the privileged view's ratio is to the policy before the update (here: itself), the bare one's to the sampler
        own = objectives.pi_distill(
            privileged_logprobs=logprobs[0],
            bare_logprobs=logprobs[1],
            rollout_logprobs=logprobs[0].detach(),
            advantages=advantages,
            teacher_share=1.0,
        )
        other = objectives.pi_distill(
            privileged_logprobs=logprobs[0],
            bare_logprobs=logprobs[1],
            rollout_logprobs=sampled,
            advantages=advantages,
            teacher_share=0.0,
        )
        wanted = wanted + (share * own + (1 - share) * other).sum()
    torch.testing.assert_close(loss, wanted / count, rtol=1e-5, atol=1e-7)


def test_kl_in_the_loss_pulls_each_view_to_the_other_in_its_direction() -> None:
    """Eq 2: KL(privileged || sg bare); Eq 3: KL(sg privileged || bare), on top of the same surrogate."""
    policy = tiny.model()
    both = tiny.two_context_rows(groups=2)
    views = [replace(r, prompt_ids=r.teacher_prompt_ids or (), teacher_prompt_ids=r.prompt_ids) for r in both]
    bare = [replace(r, term="bare", index=len(both) + r.index) for r in both]
    batch = tiny.batch_of([*views, *bare])
    other, positions = other_context(batch)
    assert other is not None
    hidden = tiny.teacher_of(policy).hidden(other)
    is_bare = torch.tensor([row.term == "bare" for row in batch.rows])[batch.row[positions]]
    against: list[Comparison] = [
        HiddenComparison(Measure("reverse_kl"), hidden[~is_bare], positions[~is_bare]),
        HiddenComparison(Measure("forward_kl"), hidden[is_bare], positions[is_bare]),
    ]
    count, share, coef = float(sum(len(row.completion_ids) for row in both)), 0.25, 0.7
    shared: dict[str, Any] = {"teacher_share": ConstantCoef(value=share), "distill_coef": ConstantCoef(value=coef)}
    signals = tiny.signals_of(batch, policy, against)
    with_kl, _ = PiDistillLoss(PiDistillObjective(kl_in="loss", **shared))(signals, Denominators(count, count), 0)
    without, _ = PiDistillLoss(PiDistillObjective(kl_in="reward", **shared))(signals, Denominators(count, count), 0)
    wanted = torch.zeros((), dtype=torch.float64)
    for row in both:
        lp = tiny.plain_logits(policy, row.teacher_prompt_ids or (), row.completion_ids).log_softmax(-1)
        ls = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
        # both are KL(privileged || bare) as values; the gradients differ by what is held fixed
        wanted = wanted + (lp.exp() * (lp - ls)).sum()
    torch.testing.assert_close(with_kl - without, coef * wanted / count, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- RLTF


def _turns(make: Make, tokenizer: Any) -> tuple[Recipe, TurnBuilder]:
    recipe = make(
        advantage={"kind": "group", "scale": "none"},
        objective={"kind": "rltf", "feedback_coef": {"kind": "constant", "value": 0.2}},
        teacher=None,
        privileged=None,
        feedback=FEEDBACK,
    )
    assert recipe.feedback is not None
    return recipe, TurnBuilder(PromptBuilder(tokenizer, recipe.data), recipe.feedback)


def test_a_second_turn_continues_the_very_tokens_of_the_first(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    recipe, turns = _turns(make_recipe, tokenizer)
    prompt = turns.builder.prompt(gsm8k[0])
    # ids that no encoder would write for their own text: decoding and encoding again would change them
    odd = tuple(tokenizer.convert_tokens_to_ids(["a", "n", "d", "t", "h", "e"]))
    assert tuple(tokenizer(tokenizer.decode(odd), add_special_tokens=False)["input_ids"]) != odd
    ended = turns.second_prompt(prompt, (*odd, tokenizer.eos_token_id), "Look again.")
    assert ended[: len(prompt.token_ids) + len(odd) + 1] == (*prompt.token_ids, *odd, tokenizer.eos_token_id)
    tail = tokenizer.decode(ended[len(prompt.token_ids) + len(odd) :])
    assert tail.startswith("<|end|><|user|>Look again.")
    assert tail.endswith("<|assistant|>")
    assert tail.count("<|end|>") == 1
    cut = turns.second_prompt(prompt, odd, "Look again.")  # a cut answer gets the end of its turn from the template
    assert tokenizer.decode(cut[len(prompt.token_ids) + len(odd) :]) == tail
    assert recipe.feedback is not None


def test_a_warm_up_comments_on_another_rows_solution(
    make_recipe: Make,
    tokenizer: Any,
    gsm8k: list[Example],
    engineless_run: Callable[[Recipe, Path], Run],
    tmp_path: Path,
) -> None:
    recipe, turns = _turns(make_recipe, tokenizer)
    rows = [gsm8k[0], gsm8k[1], replace(gsm8k[2], answer=gsm8k[0].answer)]  # the first's solution answers the third too
    prompts = [turns.builder.prompt(example) for example in rows]
    with VerifierPool("math", workers=1) as pool:
        run = replace(engineless_run(recipe, tmp_path), builder=turns.builder, pool=pool)
        found = second_turns(run, prompts)
        assert pool.stats.judged == 0  # wrong on purpose: no sign of a verifier that refuses everything
        run.train_prompts.append(prompts[0])  # alone: its own solution would be the attempt, and right
        with pytest.raises(RecipeError, match=r"stages.sft.contexts: \['second_turn'\] give no row"):
            _pairs(run, SftStage(steps=30, contexts=["second_turn"]), tmp_path)
    assert set(found) == {0, 1}
    for at, turn in found.items():
        ids = turn.prompt_ids
        attempt = turns.builder.completion_ids(rows[at + 1], prompts[at + 1])
        assert ids[: len(prompts[at].token_ids) + len(attempt)] == (*prompts[at].token_ids, *attempt)
        told = tokenizer.decode(ids[len(prompts[at].token_ids) + len(attempt) :])
        assert f"{gsm8k[at + 1].answer} is wrong." in told
        assert (rows[at].solution or "")[:40] in told
        prompt_ids, feedback = turn.critique
        asked, answered = tokenizer.decode(prompt_ids), tokenizer.decode(feedback)
        assert rows[at].question in asked and (rows[at + 1].solution or "")[-40:] in asked
        assert answered.startswith(f"Your answer {gsm8k[at + 1].answer} is wrong.") and answered.endswith("<|end|>")


def test_a_template_that_rewrites_earlier_turns_is_refused(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    recipe, _ = _turns(make_recipe, tokenizer)
    other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    other.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{{ 'gone' if not loop.last and m['role'] == 'assistant' "
        "else m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert recipe.feedback is not None
    turns = TurnBuilder(PromptBuilder(other, recipe.data), recipe.feedback)
    with pytest.raises(RecipeError, match="renders an earlier turn differently"):
        turns.second_prompt(turns.builder.prompt(gsm8k[0]), (1, 2), "x")


def _plan(make: Make, tokenizer: Any, second: list[Verdict], **changes: Any) -> tuple[RltfPlan, list[Any]]:
    recipe, turns = _turns(make, tokenizer)
    if changes:
        recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update=changes)})
    asked: list[Any] = []

    def sample(prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]], step: int) -> list[Rollout]:
        asked.extend(ids)
        return [_rollout(range(30, 34), "again", seed=step) for _ in prompts]

    assert recipe.feedback is not None
    plan = RltfPlan(
        recipe, _zero, turns=turns, source=build_feedback(recipe.feedback.source), sample_turn=sample,
        verify=lambda groups: second[: len(groups)],
    )  # fmt: skip
    return plan, asked


def test_rltf_rows_and_credit_by_hand(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    """Group 0: right, wrong -> right. Group 1: wrong -> wrong, abstained."""
    plan, asked = _plan(make_recipe, tokenizer, [Verdict.right(), Verdict.wrong()])
    prompts = [plan.turns.builder.prompt(example) for example in gsm8k[:2]]
    verdicts = [Verdict.right("5"), Verdict.wrong("4"), Verdict.wrong("9"), Verdict.abstain("error")]
    rows, figures = plan.rows(Judged(_groups(prompts, 2), verdicts, None, 0), 0)
    by_term = {term: [row for row in rows if row.term == term] for term in tiny.TERMS}
    sampled = by_term["sampled"]
    # first turns. gamma 0.1: G = [1, 0 + 0.1 * 1], mean 0.55; group 1 has one valid rollout, so no contrast
    assert [row.advantage for row in sampled[:4]] == pytest.approx([0.45, -0.45, 0.0, 0.0])
    assert [row.trained for row in sampled[:4]] == [True, True, True, False]
    # second turns of rollouts 1 and 2: the only one of its group each, so centred to 0
    assert [row.advantage for row in sampled[4:]] == pytest.approx([0.0, 0.0])
    assert [row.prompt_ids for row in sampled[4:]] == asked
    for row, at in zip(sampled[4:], (1, 2), strict=True):
        assert row.prompt_ids[: len(rows[at].prompt_ids)] == rows[at].prompt_ids
    # revisions on the bare prompt: r1 - mean r0 = 1 - 0.5, and 0 - 0
    assert [row.advantage for row in by_term["revision"]] == pytest.approx([0.5, 0.0])
    assert [row.prompt_ids for row in by_term["revision"]] == [prompts[0].token_ids, prompts[1].token_ids]
    assert [row.completion_ids for row in by_term["revision"]] == [tuple(range(30, 34))] * 2
    # critiques of every judged first answer, the right one too
    said = [tokenizer.decode(row.completion_ids[:-1]) for row in by_term["critique"]]
    assert len(said) == 3
    assert said[0] == "Your answer 5 is correct."
    assert said[1].startswith("Your answer 4 is wrong.")
    assert [row.index for row in rows] == list(range(len(rows)))
    assert figures["second_turns"] == pytest.approx(2 / 4)
    assert figures["second_turn_reward"] == pytest.approx(0.5)
    assert plan.notes[1]["second_score"] == 1.0
    assert denominators(plan.recipe, rows).critique == sum(len(r.completion_ids) for r in by_term["critique"])


def test_without_early_termination_right_answers_go_on(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    plan, asked = _plan(make_recipe, tokenizer, [Verdict.right()] * 2, early_termination=False)
    prompt = plan.turns.builder.prompt(gsm8k[0])
    plan.rows(Judged(_groups([prompt], 2), [Verdict.right("1"), Verdict.wrong("2")], None, 0), 0)
    assert len(asked) == 2


def test_long_and_cut_feedback_is_counted(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    plan, asked = _plan(make_recipe, tokenizer, [Verdict.right()] * 2)
    prompt = plan.turns.builder.prompt(gsm8k[0])
    short = plan.recipe.model_copy(
        update={"feedback": FeedbackSpec(source=RuleFeedback(hint="{solution}"), max_tokens=5, max_prompt_tokens=20)}
    )
    assert short.feedback is not None
    cut = replace(plan, recipe=short, turns=TurnBuilder(plan.turns.builder, short.feedback))
    _, figures = cut.rows(Judged(_groups([prompt], 2), [Verdict.wrong("1"), Verdict.wrong("2")], None, 0), 0)
    assert figures["feedback_cut"] == 2
    assert figures["second_turn_too_long"] == 2
    assert not asked


def test_rltf_loss_adds_its_terms(make_recipe: Make) -> None:
    del make_recipe
    policy = tiny.model()
    rows = tiny.two_context_rows(groups=2)
    rows = [replace(row, teacher_prompt_ids=None) for row in rows]
    revised = [replace(row, term="revision", index=10 + row.index, advantage=0.5) for row in rows[:2]]
    critique = [replace(row, term="critique", index=20 + row.index, prompt_ids=(1, 2)) for row in rows[2:]]
    batch = tiny.batch_of([*rows, *revised, *critique])
    signals = tiny.signals_of(batch, policy)
    policy_count = float(sum(len(row.completion_ids) for row in rows))
    critique_count = float(sum(len(row.completion_ids) for row in critique))
    totals = Denominators(policy_count, 1.0, critique=critique_count)

    def loss(sd: float, fm: float, floor: float | None = None) -> torch.Tensor:
        objective = RltfObjective(
            self_distill_coef=ConstantCoef(value=sd), feedback_coef=ConstantCoef(value=fm), logprob_floor=floor
        )
        return RltfLoss(objective)(signals, totals, 0)[0]

    base = loss(0, 0)
    masks, lp = signals.term_masks, signals.policy_logprobs
    sd = -(0.5 * lp[masks["revision"]]).sum() / policy_count
    fm = -lp[masks["critique"]].sum() / critique_count
    torch.testing.assert_close(loss(0.1, 0) - base, 0.1 * sd, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(loss(0, 0.2) - base, 0.2 * fm, rtol=1e-5, atol=1e-8)
    floor = float(lp[masks["revision"]].detach().median())
    kept = lp[masks["revision"]] >= floor
    wanted = -(0.5 * lp[masks["revision"]][kept]).sum() / policy_count
    torch.testing.assert_close(loss(1.0, 0, floor) - base, wanted, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------- ALM


def test_alignment_over_another_tokenizer_covers_the_text_and_the_end(tokenizer: Any, gsm8k: list[Example]) -> None:
    from rlkd.models.tokenizer import build_tokenizer
    from rlkd.recipe.models import CharTokenizer

    chars = build_tokenizer(CharTokenizer(), (), 512)
    aligner = Aligner.of(tokenizer, chars, where="teacher.model")
    text = "3+4=7, so \\boxed{7}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = aligner.align((1, 2), _rollout([*ids, tokenizer.eos_token_id], text))
    assert isinstance(found, Aligned)
    # a character ends wherever a token does, so every policy token is a chunk of its own; the end is one more
    assert found.policy_ranges == tuple((i, i + 1) for i in range(len(ids) + 1))
    assert found.teacher_ids == (*chars(text)["input_ids"], chars.eos_token_id)
    for (a, b), (c, d) in zip(found.policy_ranges[:-1], found.teacher_ranges[:-1], strict=True):
        assert tokenizer.decode(ids[a:b]) == chars.decode(found.teacher_ids[c:d])
    broken = _rollout(tokenizer("caf\u00e9")["input_ids"], "caf\u00e9")  # no such character in the teacher's alphabet
    assert aligner.align((1,), broken) == BROKEN
    assert gsm8k


def test_a_sample_cut_within_a_character_is_not_aligned(tokenizer: Any) -> None:
    """Three of its four bytes decode to the replacement character, which has three bytes too."""
    aligner = Aligner.of(tokenizer, tokenizer, where="teacher.model")
    ids = tokenizer("ok \U0001f600", add_special_tokens=False)["input_ids"]
    whole = aligner.align((1,), _rollout(ids))
    assert isinstance(whole, Aligned) and whole.teacher_ids == tuple(ids)
    for kept in (1, 2, 3):
        assert aligner.align((1,), _rollout(ids[: kept - 4])) == BROKEN
    said = tokenizer("so \N{REPLACEMENT CHARACTER}", add_special_tokens=False)["input_ids"]
    assert isinstance(aligner.align((1,), _rollout(said)), Aligned)  # spelled out, it is text


@pytest.mark.parametrize("text", ["3 + 4\n\t= 7", "caf\u00e9 \u2248 \U0001f600", "\x00\x7f\u00ad\u00a0"])
def test_tokens_spell_the_bytes_of_their_text(tokenizer: Any, text: str) -> None:
    of = token_bytes(tokenizer, where="policy")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(of, ids)) == text.encode()
    assert of(tokenizer.eos_token_id) == b""


def test_a_teachers_own_template_is_read_for_its_own_switches(
    make_recipe: Make, tokenizer: Any, tmp_path: Path
) -> None:
    """The policy's thinking switch is not the teacher's; a template that is missing is asked of the teacher."""
    recipe = make_recipe(data__thinking=False)
    tokenizer.save_pretrained(tmp_path / "plain")
    readers = read_teachers({"teacher": tmp_path / "plain"}, tokenizer, recipe.data)
    assert readers["teacher"].builder.data.thinking is None
    switched = AutoTokenizer.from_pretrained(tmp_path / "plain")
    switched.chat_template += "{% if enable_thinking %}<think>{% endif %}"
    switched.save_pretrained(tmp_path / "switched")
    readers = read_teachers({"teacher": tmp_path / "switched"}, tokenizer, recipe.data)
    assert readers["teacher"].builder.data.thinking is False
    switched.chat_template = None
    switched.save_pretrained(tmp_path / "none")
    for name, place in (("teacher", "teacher.model"), ("algebra", "teacher.teachers.algebra.model")):
        with pytest.raises(RecipeError, match=f"{place}: its tokenizer has no chat template; write {place}.chat_"):
            read_teachers({name: tmp_path / "none"}, tokenizer, recipe.data)


def _rows_in_chunks() -> list[TrainRow]:
    """Completions cut in two where they are long enough, with a teacher's log-probs and beliefs."""
    rows = []
    for index, row in enumerate(tiny.two_context_rows(groups=3, size=2, seed=4)):
        length = len(row.completion_ids)
        cut = max(1, length // 2)
        ranges = ((0, cut), (cut, length)) if cut < length else ((0, length),)
        values = tuple(-0.7 * (i + 1) for i in range(len(ranges)))
        view = Chunks(ranges, values, (*(-0.3,) * (len(ranges) - 1), 0.0))
        rows.append(replace(row, teacher_prompt_ids=None, index=index, teacher_view=view))
    return rows


def test_alm_loss_is_the_mean_over_all_chunks() -> None:
    policy = tiny.model()
    rows = _rows_in_chunks()
    batch = tiny.batch_of(rows)
    count = sum(len(row.teacher_view.ranges) for row in rows if isinstance(row.teacher_view, Chunks))
    loss, figures = AlmLoss(AlmObjective())(tiny.signals_of(batch, policy), Denominators(1.0, float(count)), 0)
    wanted = torch.zeros((), dtype=torch.float64)
    for row in rows:
        assert isinstance(row.teacher_view, Chunks)
        lp = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
        line = lp.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
        teacher = torch.tensor(row.teacher_view.teacher_logprobs, dtype=torch.float64)
        pieces = chunk_logprobs(line, row.teacher_view.ranges)
        wanted = wanted + alm(policy_chunks=pieces, teacher_chunks=teacher, temperature=5.0).sum()
    torch.testing.assert_close(loss, wanted / count, rtol=1e-5, atol=1e-7)
    assert float(figures["alm"][1]) == count


def test_debiasing_joins_chunks_that_the_teacher_thinks_unfinished() -> None:
    """By hand: after the second chunk of four the teacher expects no new word; the last one ends the text."""
    item = Aligned((7,), (1, 2, 3, 4, 5), ((0, 1), (1, 3), (3, 4), (4, 6)), ((0, 1), (1, 2), (2, 4), (4, 5)))
    logprobs = [-1.0, -2.0, -3.0, -4.0, -5.0]
    mass = [-9.0, -0.5, -4.0, -9.0, -0.25]  # e^-4 < 0.1 < e^-0.5
    found = _debiased(item, (logprobs, mass), 0.1)
    assert found.ranges == ((0, 1), (1, 4), (4, 6))
    assert found.teacher_logprobs == (-1.0, -9.0, -5.0)
    assert found.teacher_boundary == (-0.5, -0.25, 0.0)
    assert _debiased(item, (logprobs, mass), 0.0).ranges == item.policy_ranges
    assert _plain(item, logprobs) == Chunks(item.policy_ranges, (-1.0, -2.0, -7.0, -5.0))


def test_debiased_alm_counts_the_policys_own_belief_that_a_chunk_is_over() -> None:
    """Loss and gradient against the plain computation; where a completion ends, nothing is to be believed."""
    policy = tiny.model()
    starts = torch.arange(tiny.VOCAB) % 4 == 0
    rows = _rows_in_chunks()
    batch = tiny.batch_of(rows)
    count = sum(len(row.teacher_view.ranges) for row in rows if isinstance(row.teacher_view, Chunks))

    def packed() -> torch.Tensor:
        signals = tiny.signals_of(batch, policy, boundaries(batch, starts))
        return AlmLoss(AlmObjective(debias=0.1))(signals, Denominators(1.0, float(count)), 0)[0]

    def plain() -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            assert isinstance(row.teacher_view, Chunks)
            lp = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
            line = lp.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
            view = row.teacher_view
            for (start, end), sent, over in zip(view.ranges, view.teacher_logprobs, view.teacher_boundary, strict=True):
                w = line[start:end].sum()
                if end < len(row.completion_ids):
                    w = w + lp[end, starts].exp().sum().log()
                u, w = torch.tensor((sent + over) / 5.0, dtype=torch.float64), w / 5.0
                total = total + u.exp() * (u - w) + (1 - u.exp()) * ((1 - u.exp()).log() - (1 - w.exp()).log())
        return total / count

    torch.testing.assert_close(packed(), plain(), rtol=1e-5, atol=1e-7)
    wanted = tiny.gradient(policy, plain)
    assert float(wanted.abs().max()) > 1e-3
    torch.testing.assert_close(tiny.gradient(policy, packed), wanted, rtol=1e-4, atol=1e-6)


def test_tokens_that_begin_a_word_or_end_the_text(tokenizer: Any) -> None:
    from rlkd.models.tokenizer import build_tokenizer
    from rlkd.recipe.models import CharTokenizer

    starts = starts_pretoken(tokenizer)
    assert starts[tokenizer.eos_token_id]
    for text, expected in ((" the", True), ("the", False), ("\n", True), (" 5", True), ("5", False)):
        first = tokenizer(text, add_special_tokens=False)["input_ids"][0]
        assert starts[first] is expected, text
    spaces = sum(starts) - 1
    decoded = [tokenizer.decode([token]) for token in range(len(starts)) if token != tokenizer.eos_token_id]
    assert spaces == sum(text[:1] in (" ", "\n", "\t", "\r") for text in decoded)
    chars = build_tokenizer(CharTokenizer(), (), 512)
    begun = [chars.convert_ids_to_tokens(token) for token, is_start in enumerate(starts_pretoken(chars)) if is_start]
    assert {" ", chars.eos_token} <= set(begun)
    assert all(text in (" ", "\n", "\t", "\r", chars.eos_token) for text in begun)
