"""Several teachers: rows go where a data field says, answers come back in order, and bad routes are errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from rlkd.errors import RecipeError, TeacherError
from rlkd.recipe import Recipe
from rlkd.records import Example, HiddenStates, PrivilegedPrompt, Prompt, Rollout, RolloutGroup
from rlkd.trainer.contract import check_same_tokens, check_spelling
from rlkd.trainer.fleet import Dealt, Fleet
from rlkd.trainer.teachers import TeacherPanel

Make = Callable[..., Recipe]
MODEL = {"kind": "scratch", "hidden_size": 32, "heads": 2, "context_length": 2048,
         "tokenizer": {"kind": "bpe", "vocab_size": 512}}  # fmt: skip
Pair = tuple[Sequence[int], Sequence[int]]


class _Done:
    """A call that has been answered."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self, deadline_s: float) -> Any:
        del deadline_s
        return self.value


class _Worker:
    """Answers at once: a token's score is its id, plus 100 times the worker's teacher number."""

    def __init__(self, offset: int) -> None:
        self.offset, self.seen = offset, list[Pair]()

    def submit(self, method: str, share: Sequence[Pair], **_: Any) -> _Done:
        assert method in ("score", "hidden")
        self.seen += share
        return _Done([[float(self.offset + token) for token in completion] for _, completion in share])


def _fleet(offset: int, workers: int) -> Fleet:
    fleet = Fleet(None, "T", None, "", 1.0, 0.0)  # type: ignore[arg-type]
    fleet.workers = [_Worker(offset) for _ in range(workers)]  # type: ignore[misc]
    assert isinstance(fleet.map("score", []), Dealt)
    return fleet


def _recipe(make: Make, transport: str = "sampled", **teacher: Any) -> Recipe:
    spec = {"model": MODEL, "transport": transport, "engine": "transformers"}
    divergence = "sampled" if transport == "sampled" else "forward_kl"
    return make(
        teacher={"kind": "routed", "field": "domain", "teachers": {"algebra": spec, "medicine": spec}, **teacher},
        objective={"kind": "opd", "divergence": divergence},
    )


def _group(domain: str, first: int, size: int) -> RolloutGroup:
    example = Example(f"e{first}", "q", "a", fields={"domain": domain})
    prompt = Prompt(example, "q", (1, 2), PrivilegedPrompt("secret q", (7, 8, 9), "secret"))
    rollouts = [Rollout((first + i, first + i + 1), (0.0, 0.0), "stop", "", 0, 0, 0) for i in range(size)]
    return RolloutGroup(prompt, tuple(rollouts))


def test_rows_go_to_their_teacher_and_come_back_in_order(make_recipe: Make) -> None:
    fleets = {"algebra": _fleet(100, 2), "medicine": _fleet(200, 3)}
    panel = TeacherPanel(_recipe(make_recipe), fleets, {})
    groups = [_group("medicine", 10, 2), _group("algebra", 20, 3), _group("medicine", 30, 1)]
    scores, views = panel.ask(groups).answers()
    assert scores == [[210, 211], [211, 212], [120, 121], [121, 122], [122, 123], [230, 231]]
    assert views == [None] * 6
    seen = [pair for fleet in fleets.values() for worker in fleet.workers for pair in worker.seen]  # type: ignore[attr-defined]
    assert len(seen) == 6
    assert all(tuple(prompt) == (7, 8, 9) for prompt, _ in seen)  # a teacher sees the privileged prompt


def test_hidden_states_carry_their_teachers_name(make_recipe: Make) -> None:
    panel = TeacherPanel(_recipe(make_recipe, "hidden"), {"algebra": _fleet(100, 1), "medicine": _fleet(200, 1)}, {})
    scores, views = panel.ask([_group("medicine", 10, 1), _group("algebra", 20, 1)]).answers()
    assert scores is None
    assert [view.teacher for view in views if isinstance(view, HiddenStates)] == ["medicine", "algebra"]


def test_a_row_without_a_teacher_is_an_error_or_goes_to_the_default(make_recipe: Make) -> None:
    fleets = {"algebra": _fleet(100, 1), "medicine": _fleet(200, 1)}
    prompt = _group("algebr", 10, 1).prompt
    with pytest.raises(RecipeError, match=r"row e10 has domain = 'algebr'; did you mean 'algebra'\?"):
        TeacherPanel(_recipe(make_recipe), fleets, {}).route(prompt)
    assert TeacherPanel(_recipe(make_recipe, default="medicine"), fleets, {}).route(prompt) == "medicine"


@pytest.mark.parametrize("value", [0, False, 1, "0"])
def test_any_value_of_the_field_may_name_a_teacher(make_recipe: Make, value: Any) -> None:
    spec = {"model": MODEL, "engine": "transformers"}
    recipe = make_recipe(
        teacher={"kind": "routed", "field": "level", "teachers": {str(value): spec, "other": spec}},
        objective={"kind": "opd", "divergence": "sampled"},
    )
    panel = TeacherPanel(recipe, {str(value): _fleet(100, 1), "other": _fleet(200, 1)}, {})
    prompt = Prompt(Example("e", "q", "a", fields={"level": value}), "q", (1,))
    assert panel.route(prompt) == str(value)


@pytest.mark.parametrize(
    ("teacher", "objective", "message"),
    [
        ({"model": MODEL, "transport": "hidden"}, {"kind": "opd"}, "'vllm' returns no hidden states"),
        ({"model": MODEL}, {"kind": "opd"}, "the objective reads top_k or hidden"),
        ({"model": MODEL, "transport": "top_k"}, {"kind": "opd", "divergence": "sampled"}, "reads sampled"),
        ({"model": MODEL, "transport": "top_k"}, {"kind": "opd", "clip": 0.05}, "write clip: null"),
        ({"kind": "self"}, {"kind": "opd"}, "needs a teacher"),
        ({"kind": "self"}, {"kind": "distill"}, "needs a teacher"),
        (
            {"model": MODEL | {"tokenizer": {"kind": "char"}}, "transport": "top_k"},
            {"kind": "opd"},
            "objective.kind: alm does not",
        ),
        ({"kind": "server", "url": "http://h/v1", "model": "m", "tokenizer": "t"}, {"kind": "alm"}, "no weights here"),
        ({"kind": "server", "url": "h:80", "model": "m", "tokenizer": "t"}, {"kind": "distill"}, "teacher.url"),
        ({"model": MODEL, "engine": "vllm"}, {"kind": "alm", "debias": 0.1}, "'vllm' has no mass of token sets"),
        ({"model": MODEL, "engine": "transformers"}, {"kind": "alm", "debias": 1.5}, "objective.*debias"),
    ],
)
def test_a_teacher_that_cannot_serve_the_objective_is_refused(
    make_recipe: Make, teacher: dict[str, Any], objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(teacher=teacher, objective=objective, privileged=None)


def test_what_needs_a_transformers_teacher_takes_one(make_recipe: Make) -> None:
    teacher = {"model": MODEL, "engine": "transformers"}
    recipe = make_recipe(teacher=teacher, objective={"kind": "alm", "debias": 0.1}, privileged=None)
    assert getattr(recipe.objective, "debias", None) == 0.1


@pytest.mark.parametrize("learner", [{"zero_stage": 3}, {"zero_stage": 3, "lora": {"rank": 4}}])
@pytest.mark.parametrize("weights", ["live", "frozen", "ema"])
def test_a_policy_may_teach_itself_under_any_sharding(make_recipe: Make, learner: dict[str, Any], weights: str) -> None:
    assert make_recipe(learner=learner, teacher={"kind": "self", "weights": weights}).learner.zero_stage == 3


def test_a_teacher_of_another_vocabulary_is_refused_with_the_first_difference(tokenizer: Any) -> None:
    check_same_tokens(tokenizer, tokenizer)
    words = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    raw = json.loads(tokenizer.backend_tokenizer.to_str())

    def other(**model: Any) -> Any:
        core = Tokenizer.from_str(json.dumps(raw | {"model": raw["model"] | model}))
        return tokenizer.__class__(tokenizer_object=core, eos_token=tokenizer.eos_token)

    last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    renamed = {("~~" if word == last else word): at for word, at in raw["model"]["vocab"].items()}
    merges = [pair for pair in raw["model"]["merges"] if "".join(pair) != last]
    with pytest.raises(TeacherError, match=rf"another vocabulary.*512 and 512 tokens.*{words[last]}"):
        check_same_tokens(tokenizer, other(vocab=renamed, merges=merges))
    with pytest.raises(TeacherError, match="splits text differently"):
        check_same_tokens(tokenizer, other(merges=[]))


def test_a_served_model_that_reads_other_text_is_refused(tokenizer: Any, gsm8k: list[Example]) -> None:
    """The recipe only claims a tokenizer for a server; what it spells shows which one it has."""
    text = (gsm8k[0].solution or "") + " caf\u00e9 \u2248"
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    said: list[str | None] = [tokenizer.decode([token]) for token in ids]
    assert any("\N{REPLACEMENT CHARACTER}" in (piece or "") for piece in said)
    pair = [((1, 2), ids)]
    check_spelling(tokenizer, pair, [said], where="teacher.model")
    check_spelling(tokenizer, pair, [[None] * len(ids)], where="teacher.model")  # a server that spells nothing
    corrected = ["" if "\N{REPLACEMENT CHARACTER}" in (piece or "") else f" {piece}" for piece in said]
    check_spelling(tokenizer, pair, [corrected], where="teacher.model")
    shifted = [tokenizer.decode([token + 1]) for token in ids]
    with pytest.raises(TeacherError, match=rf"teacher.model: its server reads token {ids[0]} as .*another tokenizer"):
        check_spelling(tokenizer, pair, [shifted], where="teacher.model")


def test_a_server_scores_at_temperature_one(make_recipe: Make) -> None:
    server = {"kind": "server", "url": "http://h/v1", "model": "m", "tokenizer": "t"}
    with pytest.raises(RecipeError, match="a server scores at temperature 1"):
        make_recipe(teacher=server, objective={"kind": "distill"}, privileged=None, rollout__temperature=0.8)
