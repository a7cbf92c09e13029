"""Numbers as lettered choices: one right option, near misses beside it, and no list that gives it away."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from reward.multiple_choice import MultipleChoiceVerifier
from rlkd.data.options import LETTERS, lettered, signed
from rlkd.data.prompt import PromptBuilder
from rlkd.data.reasoning_gym import load_reasoning_gym
from rlkd.errors import RecipeError
from rlkd.models.tokenizer import build_tokenizer
from rlkd.recipe.data import DataSpec, ReasoningGymData
from rlkd.recipe.models import CharTokenizer

PLAIN = ReasoningGymData(
    task="chain_sum", config={"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2}, size=400, seed=1
)
CHOICE = PLAIN.model_copy(update={"options": 4})


def test_the_right_number_stands_once_among_distinct_near_misses() -> None:
    for plain, choice in zip(load_reasoning_gym(PLAIN, where="x"), load_reasoning_gym(CHOICE, where="x"), strict=True):
        options = choice.fields["options"]
        assert list(options) == ["A", "B", "C", "D"]
        assert options[choice.answer] == plain.answer
        numbers = [int(text) for text in options.values()]
        assert len(set(numbers)) == 4
        assert max(numbers) - min(numbers) <= 3 * 10  # three gaps of at most ten


def test_the_verifier_accepts_the_gold_and_rejects_every_distractor() -> None:
    verifier = MultipleChoiceVerifier(boxed_only=True)
    for example in load_reasoning_gym(CHOICE, where="x"):
        row = example.for_verifier()
        assert verifier.check_gold(row).score == 1.0
        for letter, text in example.fields["options"].items():
            expected = float(letter == example.answer)
            assert verifier.verify(f"so \\boxed{{{letter}}}", row).score == expected
            assert verifier.verify(f"so \\boxed{{{text}}}", row).score == expected


def test_solutions_are_the_same_steps_and_end_with_the_letter() -> None:
    verifier = MultipleChoiceVerifier(boxed_only=True)
    for plain, choice in zip(load_reasoning_gym(PLAIN, where="x"), load_reasoning_gym(CHOICE, where="x"), strict=True):
        assert plain.solution is not None
        assert choice.solution is not None
        assert choice.solution == plain.solution.replace(f"\\boxed{{{plain.answer}}}", f"\\boxed{{{choice.answer}}}")
        assert verifier.verify(choice.solution, choice.for_verifier()).score == 1.0
    for example in load_reasoning_gym(CHOICE.model_copy(update={"worked_share": 0.0}), where="x"):
        assert example.solution == f"\\boxed{{{example.answer}}}"


def test_options_depend_on_the_problem_alone() -> None:
    """Equal seeds give equal options, and a longer set begins with the shorter one."""
    many = load_reasoning_gym(CHOICE.model_copy(update={"size": 500}), where="x")
    assert many[:400] == load_reasoning_gym(CHOICE, where="x")


@pytest.mark.parametrize("count", [2, 4, 10])
def test_neither_letter_nor_size_gives_the_answer_away(count: int) -> None:
    """Letter and rank of the right number are uniform: chi-squared below its 99.99 % point in all cases."""
    letters, ranks, draws = Counter[str](), Counter[int](), 4000
    for seed in range(draws):
        found = lettered("7", count=count, seed=seed)
        assert found is not None
        options, letter = found
        letters[letter] += 1
        ranks[sorted(map(int, options.values())).index(7)] += 1
    bound = {2: 15.1, 4: 21.1, 10: 33.7}[count]  # scipy.stats.chi2.ppf(0.9999, count - 1)
    expected = draws / count
    assert sum((letters[letter] - expected) ** 2 / expected for letter in LETTERS[:count]) < bound
    assert sum((ranks[rank] - expected) ** 2 / expected for rank in range(count)) < bound


@pytest.mark.parametrize("answer", ["-4", "0.50", "1234567890123456789012345678901234567890", "1e3", "+3"])
def test_any_plain_number_keeps_its_spelling_and_its_decimals(answer: str) -> None:
    found = lettered(answer, count=5, seed=3)
    assert found is not None
    options, letter = found
    assert options[letter] == answer
    unit = Fraction("0.01") if "." in answer else Fraction(1)
    misses = [(Fraction(text) - Fraction(answer)) / unit for text in options.values()]
    assert sorted(misses)[0] <= 0 <= sorted(misses)[-1]
    assert len(set(misses)) == 5
    assert all(miss.denominator == 1 and abs(miss) <= 40 for miss in misses)  # four gaps of at most ten


@pytest.mark.parametrize(("answer", "letter"), [("-4", "A"), ("-0.5", "A"), ("0", "B"), ("-0", "B"), ("3", "C")])
def test_signs(answer: str, letter: str) -> None:
    assert signed(answer) == ({"A": "negative", "B": "zero", "C": "positive"}, letter)


def test_signs_of_sums_end_their_steps() -> None:
    verifier = MultipleChoiceVerifier(boxed_only=True)
    for example in load_reasoning_gym(PLAIN.model_copy(update={"options": "sign"}), where="x"):
        assert example.solution is not None
        total = int(example.solution.rsplit(", ", 1)[0].rpartition("=")[2])
        assert signed(str(total)) == (example.fields["options"], example.answer)
        assert verifier.verify(example.solution, example.for_verifier()).score == 1.0


def test_what_is_no_number_is_refused_by_name() -> None:
    assert lettered("yes", count=4, seed=0) is None
    assert lettered("NaN", count=4, seed=0) is None
    assert signed("yes") is None
    with pytest.raises(RecipeError, match=r"data\.train\.options: the answer .* of task 'word_sorting'"):
        load_reasoning_gym(ReasoningGymData(task="word_sorting", size=2, seed=1, options=4), where="data.train")


def test_the_prompt_lists_the_options() -> None:
    example = load_reasoning_gym(CHOICE, where="x")[0]
    data = DataSpec(train=[CHOICE], prompt="{question}\n{options}")
    text = PromptBuilder(build_tokenizer(CharTokenizer(), (), 256), data).prompt(example).text
    for letter, number in example.fields["options"].items():
        assert f"\n{letter}. {number}" in text
