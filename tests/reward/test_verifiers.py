"""The small verifiers, composition, loading: accepted, rejected and cheating cases of each."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reward
from reward.compose import Composition, Route
from reward.exact import ExactVerifier
from reward.format import FormatVerifier
from reward.leak import LeakVerifier
from reward.length import LengthVerifier, per_turn, soft_overlong
from reward.multiple_choice import MultipleChoiceVerifier
from reward.numeric import NumericVerifier
from reward.protocol import Verifier
from reward.reasoning_gym import ReasoningGymVerifier
from reward.registry import BUILTIN, load
from reward.repetition import RepetitionVerifier, distinct_share
from reward.text import after_thinking, boxes, fold, last_boxes
from reward.verdict import REASONS, Verdict
from rlkd.errors import VerifierError

OPTIONS: dict[str, dict[str, Any]] = {"length": {"max_length": 100, "buffer": 20},
           "llm_judge": {"url": "http://localhost:1/v1", "model": "m"},
           "compose": {"outcome": "exact"}, "route": {"field": "kind", "routes": {"a": "exact"}}}  # fmt: skip


# -- verdicts and loading


def test_verdict_has_a_score_or_abstains() -> None:
    with pytest.raises(VerifierError, match="abstains"):
        Verdict(score=None, parsed=None, reason="wrong")
    with pytest.raises(VerifierError, match="abstains"):
        Verdict(score=0.0, parsed=None, reason="error", abstained=True)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
def test_scores_lie_in_the_unit_interval(score: float) -> None:
    with pytest.raises(VerifierError):
        Verdict(score=score, parsed=None, reason="partial")


def test_unknown_reason_is_refused() -> None:
    with pytest.raises(VerifierError, match="none of"):
        Verdict(score=0.0, parsed=None, reason="meh")  # type: ignore[arg-type]


@given(st.sampled_from(REASONS), st.text(), st.dictionaries(st.text(), st.floats(-1, 1)))
def test_verdict_survives_the_wire(reason: Any, detail: str, shaping: dict[str, float]) -> None:
    verdict = Verdict(0.5, "x", reason, detail=detail, shaping=shaping)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_name_builds_a_verifier_of_that_name(name: str) -> None:
    verifier = load({"name": name, **OPTIONS.get(name, {})})
    assert isinstance(verifier, Verifier)
    assert verifier.name == name


def test_package_metadata_lists_the_same_names() -> None:
    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert table["rlkd.verifiers"] == BUILTIN


def test_installed_package_adds_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = type("Point", (), {"name": "mine", "value": "verifiers_for_tests:by_command"})()
    monkeypatch.setattr("reward.registry.entry_points", lambda group: [point] if group == "rlkd.verifiers" else [])
    assert load("mine").verify("a", {"answer": "a"}).score == 1.0
    assert entry_points is not None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("maths", "did you mean 'math'"),
        ("nowhere.at_all:f", "does not import"),
        ("verifiers_for_tests:allways", "did you mean 'always'"),
        ("verifiers_for_tests:READY", "accepted: a class"),
        ({"name": "math", "polcy": "strict"}, "polcy"),
        ({"nme": "math"}, "needs 'name'"),
        ({"name": "compose", "outcome": "math", "shaping": [{"verifer": "length"}]}, "did you mean 'verifier'"),
        ({"name": "length", "max_length": 10, "mode": "characters"}, "soft_overlong, per_turn"),
        ({"name": "length", "max_length": 10}, "0 < buffer <= max_length"),
        ({"name": "repetition", "size": 0}, "size >= 1"),
        ({"name": "numeric", "relative": 2.0}, "relative"),
        ({"name": "llm_judge", "url": "localhost", "model": "m"}, "http://"),
    ],
)
def test_errors_say_what_was_given_and_what_is_accepted(spec: Any, words: str) -> None:
    with pytest.raises(VerifierError, match=words):
        load(spec)


# -- text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a", None),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("b<think>a</think>", "b"),
        ("<think>a</think>b<think>c", "b"),
        ("<THINK >a</ think>b", "b"),
        ("the token <think> appears", "the token <think> appears"),
        ("Sure! <think> appears", "Sure! "),
    ],
)
def test_what_is_said_outside_thinking(text: str, said: str | None) -> None:
    assert after_thinking(text) == said


def test_boxes_side_by_side_and_apart() -> None:
    assert last_boxes("\\boxed{1} \\boxed{2}") == ["1", "2"]
    assert last_boxes("\\boxed{1}. Wait: \\boxed{2}") == ["2"]
    assert last_boxes("\\boxed{1} \\boxed{") == []
    assert [content for _, _, content in boxes("\\boxed{a{b}c} \\boxed 7 \\boxed{\\}}")] == ["a{b}c", "7", "\\}"]


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


# -- exact, numeric


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("Paris", "paris", True), ("  Paris. ", "Paris", True), ("\\boxed{Paris}", "Paris", True),
        ("ＰＡＲＩＳ", "Paris", True),
        ("<think>Rome</think><answer>Paris</answer>", "Paris", True), ("Paris", ["Paris", "City of Paris"], True),
        ("Rome", "Paris", False), ("It is Paris", "Paris", False), ("Par", "Paris", False), ("", "Paris", False),
        ("<think>Paris", "Paris", False), ("Paris Rome", "Paris", False),
    ],
)  # fmt: skip
def test_exact(completion: str, gold: Any, right: bool) -> None:
    assert (ExactVerifier().verify(completion, {"answer": gold}).score == 1.0) is right


@pytest.mark.parametrize("gold", [None, "", "   ", []])
def test_exact_never_accepts_an_empty_gold(gold: Any) -> None:
    """An empty answer is part of every text."""
    assert ExactVerifier().verify("", {"answer": gold}).reason == "bad_gold"


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("\\boxed{9.95}", "10", True), ("\\boxed{9.8}", "10", False), ("\\boxed{1.01e-7}", "1e-7", True),
        ("\\boxed{1.2e-7}", "1e-7", False), ("\\boxed{0}", "1e-7", False), ("The answer is 3.0 m", "3.01 m", True),
        ("The answer is 3.0 km", "3.01 m", False),
        ("\\boxed{3.0 \\text{ m/s}}", "3.01 m/s", True), ("\\boxed{3.0 m/s}", "3.01 m", False),
        ("\\boxed{10 or 11}", "10", False), ("no idea", "10", False),
        ("\\boxed{-10}", "10", False), ("v = \\boxed{v = 1000}", "10^3", True),
    ],
)  # fmt: skip
def test_numeric_within_one_percent(completion: str, gold: str, right: bool) -> None:
    assert (NumericVerifier().verify(completion, {"answer": gold}).score == 1.0) is right


def test_numeric_border_is_exact() -> None:
    """0.5 absolute around 10: 10.5 is in, the next decimal is out."""
    verifier = NumericVerifier(relative=0.0, absolute=0.5)
    assert verifier.verify("\\boxed{10.5}", {"answer": 10}).score == 1.0
    assert verifier.verify("\\boxed{10.5000000000000001}", {"answer": 10}).score == 0.0
    assert verifier.check_gold({"answer": "ten"}).reason == "bad_gold"


# -- multiple choice on real rows


@pytest.mark.parametrize("name", ["medqa_test", "medmcqa_test", "pubmedqa_test"])
def test_medical_rows(shared: Path, name: str) -> None:
    """Each gold letter in the common dressings, its text, and every other letter."""
    verifier, wrong = MultipleChoiceVerifier(), []
    for line in (shared / "data" / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts = [fold(text) for text in row["options"].values()]
        if len(set(texts)) < len(texts) or any(len(text) < 2 for text in texts):
            continue  # options that are the same, or letters themselves: their text cannot be an answer
        assert verifier.check_gold(row).score == 1.0
        letter, text = row["answer_idx"], row["options"][row["answer_idx"]]
        accepted = [
            f"The answer is {letter}.", f"\\boxed{{{letter}}}", f"Answer: **{letter}. {text}**",
            f"<answer>{letter}</answer>",
            f"<think>A or B? maybe C</think>So, ({letter}) {text}", f"The answer is {text}.",
        ]  # fmt: skip
        rejected = [f"\\boxed{{{other}}}" for other in row["options"] if other != letter]
        rejected += [f"Answer: {other} or {letter}" for other in row["options"] if other != letter]
        rejected += [f"\\boxed{{{words}}}" for other, words in row["options"].items() if other != letter]
        wrong += [completion for completion in accepted if verifier.verify(completion, row).score != 1.0]
        wrong += [completion for completion in rejected if verifier.verify(completion, row).score == 1.0]
    assert wrong == []


def test_boxed_only_is_alphameds_rule() -> None:
    rule = MultipleChoiceVerifier(boxed_only=True)
    assert rule.verify("so \\boxed{B}", {"answer": "B"}).score == 1.0
    assert rule.verify("The answer is B", {"answer": "B"}).reason == "unparsed"


# -- format


@pytest.mark.parametrize(
    ("completion", "prompt", "right"),
    [
        ("<think>a</think>b", "Q", True), ("a</think>b", "Q<think>\n", True), ("a</think>b", "Q", False),
        ("<think>a</think>b", "Q<think>", False), ("<think>a</think>", "Q", False), ("<think> </think>b", "Q", False),
        ("<think>a</think>b</think>c", "Q", False), ("x<think>a</think>b", "Q", False), ("b", "Q", False),
        ("<think>a</think><answer>1</answer>", "Q", True),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "Q", False),
        ("<think>a</think><answer>1", "Q", False), ("<think>a</think><answer></answer>", "Q", False),
    ],
)  # fmt: skip
def test_format(completion: str, prompt: str, right: bool) -> None:
    assert (FormatVerifier().verify(completion, {"prompt": prompt}).score == 1.0) is right


def test_format_with_required_answer_tag() -> None:
    strict = FormatVerifier(require_answer_tag=True)
    assert strict.verify("<think>a</think>\n<answer>1</answer>\n", {}).score == 1.0
    assert strict.verify("<think>a</think>1", {}).score == 0.0
    assert strict.verify("<think>a</think><answer>1</answer> and more", {}).score == 0.0


# -- shaping


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (101, -1.0), (1000, -1.0)]
)
def test_soft_overlong_is_dapos(length: int, penalty: float) -> None:
    """Limit 100, buffer 20: none up to 80, linear to -1 at 100, -1 beyond."""
    assert soft_overlong(length, max_length=100, buffer=20) == pytest.approx(penalty)


def test_per_turn_is_the_mean_over_turns() -> None:
    """Half way between 2000 and 5000 costs half of 2 * 0.1; a short turn costs nothing."""
    published = {"threshold": 2000, "max_length": 5000, "weight": 0.1, "floor": -0.3}
    assert per_turn([3500], **published) == pytest.approx(-0.1)  # type: ignore[arg-type]
    assert per_turn([100, 9000], **published) == pytest.approx(-0.1)  # type: ignore[arg-type]
    assert per_turn([], **published) == 0.0  # type: ignore[arg-type]
    assert per_turn([9000], threshold=0, max_length=1, weight=0.5, floor=-0.3) == -0.3


def test_length_reads_tokens_never_characters() -> None:
    verifier = LengthVerifier(max_length=100, buffer=20)
    assert verifier.verify("x" * 10_000, {"completion_tokens": 10}).score == 1.0
    assert verifier.verify("x", {"completion_tokens": 90}).score == 0.5
    assert verifier.verify("x" * 10_000, {}).abstained


def test_repetition() -> None:
    """abab...: 2 distinct bigrams of 99; words all new: every bigram is distinct."""
    assert distinct_share(["a", "b"] * 50, 2) == pytest.approx(2 / 99)
    assert distinct_share(list(range(50)), 4) == 1.0
    assert distinct_share([1], 4) == 1.0
    verifier = RepetitionVerifier(size=2, allowed=0.5)
    assert verifier.verify("a b " * 50, {}).score == pytest.approx(2 / 99 / 0.5)
    assert verifier.verify("", {"completion_ids": [7] * 100}).score == pytest.approx(1 / 99 / 0.5)
    assert verifier.verify("说" * 100, {}).score == pytest.approx(1 / 99 / 0.5)


def test_leak() -> None:
    secret = "first call get_user then cancel order 17 and refund it to the old card"
    verifier = LeakVerifier(run=5)
    example = {"privileged": secret, "prompt": "Help the user."}
    assert verifier.verify("I look up the user.", example).score == 1.0
    assert verifier.verify(f"I will {secret}!", example).score == pytest.approx(0.9)
    assert verifier.verify(f"{secret} ... some words between ... {secret}", example).score == pytest.approx(0.8)
    assert verifier.verify("As the hint says, per the reference solution", example).score == pytest.approx(0.8)
    assert verifier.verify(secret, {**example, "prompt": secret}).score == 1.0
    assert verifier.verify(secret, {}).score == 1.0


# -- composition


def test_outcome_stays_apart_from_shaping() -> None:
    """reward = 1 + 0.5 * (0.5 - 1) + 0.2 * 1; the score is the outcome alone."""
    both = Composition(
        outcome="math",
        shaping=[
            {"verifier": {"name": "length", "max_length": 100, "buffer": 20}, "weight": 0.5},
            {"verifier": "format", "weight": 0.2, "as": "bonus"},
        ],
    )
    verdict = both.verify("<think>a</think>\\boxed{5}", {"answer": "5", "completion_tokens": 90})
    assert verdict.score == 1.0
    assert verdict.shaping == {"length": pytest.approx(-0.25), "format": pytest.approx(0.2)}
    assert verdict.reward == pytest.approx(0.95)


def test_abstentions_in_a_composition() -> None:
    terms = [{"verifier": {"name": "length", "max_length": 100, "buffer": 20}}]
    both = Composition(outcome="math", shaping=terms)
    assert both.verify("\\boxed{5}", {"answer": None}).reason == "bad_gold"
    shaped = both.verify("\\boxed{5}", {"answer": "5"})
    assert shaped.score == 1.0
    assert shaped.shaping == {}
    assert "length abstained" in shaped.detail


def test_weighted_outcomes_and_terms_for_right_answers_only() -> None:
    """3 parts math (right), 1 part exact (wrong): 0.75, which is not fully right, so the length term is 0."""
    mixed = Composition(
        outcome=[{"verifier": "math", "weight": 3}, {"verifier": "exact", "weight": 1}],
        shaping=[{"verifier": {"name": "length", "max_length": 10, "buffer": 10}, "only_right": True}],
    )
    verdict = mixed.verify("\\boxed{0.5}", {"answer": "1/2", "completion_tokens": 50})
    assert (verdict.score, verdict.reason, verdict.shaping) == (0.75, "partial", {"length": 0.0})


def test_route_by_a_field() -> None:
    route = Route(field="kind", routes={"mc": "multiple_choice"}, default="math")
    assert route.verify("\\boxed{B}", {"kind": "mc", "answer": "B"}).parsed == "B"
    assert route.verify("\\boxed{0.5}", {"answer": "1/2"}).score == 1.0
    assert Route(field="kind", routes={"a": "math"}).verify("x", {"kind": "b"}).reason == "bad_gold"


# -- reasoning-gym


EVALUATING = ["countdown", "n_queens", "binary_matrix", "string_insertion", "polynomial_multiplication"]


def test_reasoning_gym_tasks_accept_their_own_answers() -> None:
    import reasoning_gym

    verifier = ReasoningGymVerifier()
    for task in ("knights_knaves", "chain_sum", "spell_backward", *EVALUATING):
        for entry in list(reasoning_gym.create_dataset(task, size=3, seed=5)):
            row = json.loads(json.dumps(entry, default=str)) if task == "chain_sum" else entry
            assert verifier.check_gold(row).score == 1.0
            assert verifier.verify(f"<think>?</think><answer>{entry['answer']}</answer>", row).score == 1.0
            assert verifier.verify("<answer>surely not this</answer>", row).score != 1.0
            assert verifier.verify(f"<think><answer>{entry['answer']}</answer>", row).score == 0.0


@pytest.mark.parametrize("task", EVALUATING)
def test_reasoning_gym_answers_are_never_run(task: str, tmp_path: Path) -> None:
    """These tasks' scorers eval what they are given."""
    import reasoning_gym

    entry = reasoning_gym.create_dataset(task, size=1, seed=1)[0]
    planted = tmp_path / "planted"
    attack = f"[open('{planted}', 'w'), '{entry['answer']}'][0]"
    verdict = ReasoningGymVerifier().verify(f"<answer>{attack}</answer>", entry)
    assert verdict.score == 0.0
    assert not planted.exists()


def test_reasoning_gym_unusable_rows_abstain() -> None:
    verifier = ReasoningGymVerifier()
    assert verifier.verify("x", {"answer": "y"}).reason == "bad_gold"
    assert verifier.verify("x", {"answer": "y", "metadata": {"source_dataset": "no_such"}}).reason == "bad_gold"


def test_package_names_its_parts() -> None:
    assert set(reward.__all__) == {"Example", "Reason", "Verdict", "Verifier", "known", "load"}
    assert set(BUILTIN) <= reward.known().keys()
