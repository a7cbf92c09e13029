"""What the teacher sees: template, budgets, leaks, and that the student sees none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reward.verdict import Verdict
from rlkd.data import privileged
from rlkd.data.privileged import PrivilegedBuilder
from rlkd.data.prompt import PromptBuilder
from rlkd.errors import RecipeError
from rlkd.recipe import Recipe, load_recipe
from rlkd.records import Example, Prompt, Rollout, RolloutGroup
from rlkd.show import show_example
from rlkd.trainer.assemble import Judged
from rlkd.trainer.plan import leak_figures

Make = Callable[..., Recipe]
REPOSITORY = Path(__file__).resolve().parents[2]


def _builder(recipe: Recipe, tokenizer: Any) -> PrivilegedBuilder:
    found = PrivilegedBuilder.of(recipe, PromptBuilder(tokenizer, recipe.data))
    assert found is not None
    return found


def _prompts(builder: PrivilegedBuilder, examples: list[Example]) -> list[Prompt]:
    return [builder.builder.prompt(example) for example in examples]


def test_teacher_sees_the_solution_and_the_student_does_not(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    builder = _builder(make_recipe(), tokenizer)
    attached = builder.attach(_prompts(builder, gsm8k))
    assert len(attached.prompts) == len(gsm8k)
    for prompt in attached.prompts:
        assert prompt.privileged is not None
        solution = (prompt.example.solution or "").strip()
        assert solution in prompt.privileged.text
        assert solution not in prompt.text
        assert tokenizer.decode(prompt.privileged.token_ids) == prompt.privileged.text
        assert prompt.example.question in prompt.privileged.text
        assert prompt.teacher_ids == prompt.privileged.token_ids
        assert prompt.privileged.text.endswith("<|assistant|>")


def test_budget_of_the_privileged_text_is_its_own_and_cuts_are_counted(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    lengths = [len(tokenizer(example.solution)["input_ids"]) for example in gsm8k]
    budget = sorted(lengths)[100]
    over = sum(length > budget for length in lengths)
    assert over > 50
    recipe = make_recipe(privileged__max_tokens=budget)
    builder = _builder(recipe, tokenizer)
    attached = builder.attach(_prompts(builder, gsm8k))
    assert attached.noted[privileged.CUT] == over
    for prompt, length in zip(attached.prompts, lengths, strict=True):
        side = prompt.privileged
        assert side is not None
        assert side.truncated == (length > budget)
        assert (prompt.example.solution or "").endswith(side.privileged)  # the end is kept: the answer stands there
    excluding = _builder(make_recipe(privileged__max_tokens=budget, privileged__too_long="exclude"), tokenizer)
    found = excluding.attach(_prompts(excluding, gsm8k))
    assert found.excluded[privileged.TOO_LONG] == over
    assert len(found.prompts) == len(gsm8k) - over


def test_a_teacher_prompt_over_its_window_is_left_out_and_counted(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    free = _builder(make_recipe(), tokenizer)
    longest = [len(p.teacher_ids) for p in free.attach(_prompts(free, gsm8k)).prompts]
    window = sorted(longest)[150]
    tight = _builder(make_recipe(privileged__max_prompt_tokens=max(window, 513)), tokenizer)
    attached = tight.attach(_prompts(tight, gsm8k))
    assert attached.excluded[privileged.NO_ROOM] == sum(length > max(window, 513) for length in longest)


def test_an_answer_in_the_students_prompt_is_excluded(make_recipe: Make, tokenizer: Any) -> None:
    builder = _builder(make_recipe(privileged__field="answer"), tokenizer)
    leaky = Example("leaky", "Which is larger, 12 or 7?", "12")
    part = Example("part", "What is 3 plus 123?", "12")  # 12 stands inside 123 only
    attached = builder.attach(_prompts(builder, [leaky, part]))
    assert [p.example.id for p in attached.prompts] == ["part"]
    assert attached.excluded == {privileged.IN_PROMPT: 1}
    keeping = _builder(make_recipe(privileged__field="answer", privileged__in_prompt="keep"), tokenizer)
    assert len(keeping.attach(_prompts(keeping, [leaky, part])).prompts) == 2


def test_rows_without_the_field(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    rows = [replace(gsm8k[0], solution=None), *gsm8k[1:4]]
    builder = _builder(make_recipe(), tokenizer)
    with pytest.raises(RecipeError, match=r"'solution' is empty in 1 of 4 rows \(first: gsm8k-0\)"):
        builder.attach(_prompts(builder, rows))
    excluding = _builder(make_recipe(privileged__missing="exclude"), tokenizer)
    assert excluding.attach(_prompts(excluding, rows)).excluded == {privileged.MISSING: 1}
    plain = _builder(make_recipe(privileged__missing="plain"), tokenizer).attach(_prompts(builder, rows))
    assert plain.noted[privileged.PLAIN] == 1
    assert plain.prompts[0].privileged is None
    assert plain.prompts[0].teacher_ids == plain.prompts[0].token_ids
    misnamed = _builder(make_recipe(privileged__field="hints"), tokenizer)
    hinted = [replace(example, fields={"hint": "think"}) for example in gsm8k[:2]]
    with pytest.raises(RecipeError, match="did you mean 'hint'"):
        misnamed.attach(_prompts(misnamed, hinted))


def test_braces_in_the_data_stay_text(make_recipe: Make, tokenizer: Any) -> None:
    builder = _builder(make_recipe(), tokenizer)
    example = Example("b", "What is {privileged} in {solution}?", "4", solution="{question} and {privileged}")
    (prompt,) = builder.attach(_prompts(builder, [example])).prompts
    assert prompt.privileged is not None
    assert "What is {privileged} in {solution}?" in prompt.privileged.text
    assert "{question} and {privileged}" in prompt.privileged.text


def test_copied_text_is_found_unless_the_student_saw_it(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    builder = _builder(make_recipe(), tokenizer)
    (prompt,) = builder.attach(_prompts(builder, gsm8k[:1])).prompts
    words = (gsm8k[0].solution or "").split()
    assert privileged.copied("So " + " ".join(words[:8]), prompt, run=8)
    assert not privileged.copied(" ".join(words[:7]), prompt, run=8)
    assert not privileged.copied(gsm8k[0].question, prompt, run=4)


def test_a_thought_without_an_end_is_excluded_before_the_teacher_and_counted_after_the_student(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    builder = _builder(make_recipe(), tokenizer)
    texts = ["<think>hm</think> so 4", "<think>hm, so 4", "so 4"]
    rows = [replace(gsm8k[at], solution=text) for at, text in enumerate(texts)]
    attached = builder.attach(_prompts(builder, rows))
    assert [prompt.example.solution for prompt in attached.prompts] == [texts[0], texts[2]]
    assert attached.excluded == {privileged.OPEN_THINKING: 1}
    said = [Rollout((5,), (-1.0,), "length", text, 0, 0, 0) for text in (texts[1], texts[0], "<think>", "so 4")]
    judged = Judged([RolloutGroup(attached.prompts[0], tuple(said))], [Verdict.wrong()] * 4, None, 0)
    assert leak_figures(make_recipe(), judged)["unclosed_thinking"] == 0.5


def test_thinking_that_the_template_opens_is_counted_too(
    make_recipe: Make, tokenizer: Any, gsm8k: list[Example]
) -> None:
    """R1's distills and Qwen3-Thinking: the prompt ends with <think>."""
    builder = _builder(make_recipe(), tokenizer)
    (prompt,) = builder.attach(_prompts(builder, gsm8k[:1])).prompts
    assert prompt.privileged is not None
    opened = replace(prompt, text=f"{prompt.text}<think>\n")
    said = [Rollout((5,), (-1.0,), "length", text, 0, 0, 0) for text in ("hm, so 4", "hm</think> so 4")]

    def count(shown: Prompt, recipe: Recipe) -> float:
        judged = Judged([RolloutGroup(shown, tuple(said))], [Verdict.wrong()] * 2, None, 0)
        return leak_figures(recipe, judged)["unclosed_thinking"]

    assert count(opened, make_recipe()) == 0.5
    assert count(prompt, make_recipe()) == 0.0
    assert count(replace(prompt, text=f"What is <think>?{prompt.text}"), make_recipe()) == 0.0
    privileged_sampled = make_recipe(objective={"kind": "pi_distill"}, teacher=None)
    assert count(opened, privileged_sampled) == 0.0
    side = replace(prompt.privileged, text=f"{prompt.privileged.text}<think>\n")
    assert count(replace(prompt, privileged=side), privileged_sampled) == 0.5


def test_both_turns_of_a_feedback_recipe_are_shown() -> None:
    text = show_example(load_recipe(REPOSITORY / "recipes" / "rltf_fm.yaml", ["data.train.size=64"]), root=REPOSITORY)
    first = load_recipe(REPOSITORY / "recipes" / "rltf_sd.yaml", ["data.train.size=64"])
    bare = show_example(first, root=REPOSITORY)
    solution = "3-0=3, 3-7=-4, \\boxed{-4}"
    for shown in (text, bare):
        assert f"(an attempt that ends in 0)<|end|><|user|>0 is wrong. {solution}<|assistant|>" in shown
    assert "7 = (an attempt that ends in 0)<|assistant|>" in text  # what the critique is predicted from
    assert "no others, after each of the prompts bare, second_turn; and feedback after the critic's (" in text
    assert "critic" not in bare


def test_both_prompts_are_shown(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    builder = _builder(make_recipe(), tokenizer)
    prompts = builder.attach(_prompts(builder, gsm8k[:1])).prompts
    text = privileged.show(prompts)
    assert prompts[0].text in text
    assert prompts[0].privileged is not None
    assert prompts[0].privileged.text in text


def test_thinking_modes_are_separate_and_must_act(make_recipe: Make, tokenizer: Any, gsm8k: list[Example]) -> None:
    with pytest.raises(RecipeError, match=r"privileged.thinking: True.*no enable_thinking"):
        _builder(make_recipe(privileged__thinking=True), tokenizer)
    modes = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    modes.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '<think>' if enable_thinking else '<think></think>' }}"
    )
    builder = _builder(make_recipe(privileged__thinking=True, data__thinking=False), modes)
    (prompt,) = builder.attach(_prompts(builder, gsm8k[:1])).prompts
    assert prompt.text.endswith("<think></think>")
    assert prompt.privileged is not None
    assert prompt.privileged.text.endswith("<think>")


SHARE = {"kind": "switched", "value": 1.5, "at": 3}
TEACHERS = {
    "kind": "routed",
    "field": "source",
    "teachers": {
        f"k{k}": {"model": {"kind": "pretrained", "path": "x"}, "transport": "top_k", "top_k": k} for k in (4, 8)
    },
}
TWO_TURNS = {
    "objective__kind": "rltf",
    "privileged": None,
    "teacher": None,
    "feedback": {"max_prompt_tokens": 900},
    "advantage": {"kind": "group", "baseline": "mean", "scale": "none"},
}


def _warm_up(*contexts: str) -> list[dict[str, Any]]:
    return [{"kind": "sft", "steps": 30, "contexts": list(contexts)}, {"kind": "rl", "steps": 1}]


IN_REWARD = {"kind": "opsd", "kl_in": "reward", "reward_coef": 1.0}
SHAPED = {"outcome": "math", "shaping": [{"verifier": "repetition"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privileged": None}, "has no privileged information"),
        ({"privileged__template": "{question}"}, r"does not contain \{privileged\}"),
        ({"privileged__template": "{privileged}"}, "shows the teacher no problem"),
        ({"data__prompt": "{question} {solution}"}, "shows the privileged field"),
        ({"privileged__max_tokens": 4000}, "exceeds policy.context_length"),
        ({"privileged__max_prompt_tokens": 100}, "must exceed max_tokens"),
        ({"teacher": None}, "taught by the policy itself"),
        ({"objective__kind": "grpo"}, "shows it to no one"),
        ({"objective__kl_in": "reward"}, "reward_coef is 0"),
        ({"objective": {**IN_REWARD, "divergence": "jensen_shannon"}}, r"'jensen_shannon' acts on nothing.*log-ratio"),
        ({"objective": {**IN_REWARD, "clip": 0.01}}, r"objective.clip: 0.01 acts on nothing, as kl_in 'reward'"),
        ({"objective": {**IN_REWARD, "mixture_weight": 0.3}}, r"objective.mixture_weight: 0.3 acts on nothing"),
        ({"objective": {"kind": "opsd", "mixture_weight": 0.9}}, "mixture_weight: 0.9.*divergence is 'forward_kl'"),
        ({"objective": {"kind": "opsd", "divergence": "sampled", "clip": 0.01}}, "clip: 0.01.*divergence is 'sampled'"),
        (
            {"objective": {"kind": "pi_distill", "kl_in": "loss", "kl_estimator": "sampled"}, "teacher": None},
            "kl_estimator: 'sampled' is for kl_in 'reward'",
        ),
        (
            {"objective": {"kind": "pi_distill", "teacher_share": SHARE}, "teacher": None},
            r"objective.teacher_share: \[1.5\] leaves \[0, 1\]",
        ),
        ({"objective": {"kind": "pi_distill", "kl_coef": 0.1}, "teacher": None}, "'pi_distill' has no reference"),
        (
            {"objective": {"kind": "opd", "divergence": "forward_kl", "clip": None}, "teacher": TEACHERS},
            r"top_k \[4, 8\] in one batch",
        ),
        ({**TWO_TURNS, "verifier": {"kind": "compose", "options": SHAPED}}, "'rltf' credits its turns by the outcome"),
        (
            {"objective__kind": "rltf", "privileged": None, "teacher": None, "feedback": {"max_prompt_tokens": 900}},
            "divides by nothing",
        ),
        ({"objective__kind": "rltf", "privileged": None, "teacher": None}, "feedback: objective 'rltf' needs it"),
        ({"feedback": {"max_tokens": 32}}, "feedback: is read by objective 'rltf', not by 'opsd'"),
        ({"stages": _warm_up("second_turn")}, "stages.0.contexts: 'second_turn' takes its feedback by rule"),
        ({"stages": _warm_up("critique")}, "stages.0.contexts: 'critique' takes its feedback by rule"),
        ({"stages": _warm_up("bare", "bare")}, "names one twice"),
        ({"stages": _warm_up()}, "stages.0.*contexts"),
        ({**TWO_TURNS, "stages": _warm_up("privileged")}, "'privileged', but the recipe has no `privileged:` section"),
    ],
)
def test_contradictions_are_refused_before_anything_starts(
    make_recipe: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(**changes)


@pytest.mark.parametrize(
    "objective",
    [
        IN_REWARD,
        {**IN_REWARD, "divergence": "sampled", "clip": None},
        {"kind": "opsd", "divergence": "jensen_shannon", "mixture_weight": 0.9, "clip": 0.01},
        {"kind": "opsd", "divergence": "sampled", "clip": None},
    ],
)
def test_settings_that_act_are_taken(make_recipe: Make, objective: dict[str, Any]) -> None:
    assert make_recipe(objective=objective).objective.kind == "opsd"


def test_a_warm_up_may_show_what_its_objective_does_not(make_recipe: Make) -> None:
    stages = _warm_up("bare", "privileged", "second_turn")
    for objective in ("grpo", "opsd", "rltf"):
        teacher = {"kind": "self"} if objective == "opsd" else None
        changes = {**TWO_TURNS, "objective__kind": objective, "teacher": teacher, "privileged__field": "solution"}
        changes.pop("privileged")
        assert make_recipe(**changes, stages=stages).objective.kind == objective
