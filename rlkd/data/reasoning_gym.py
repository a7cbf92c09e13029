"""Problems and worked solutions from the package reasoning-gym."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from rlkd.data.options import lettered, signed
from rlkd.errors import RecipeError, did_you_mean
from rlkd.recipe.data import ReasoningGymData
from rlkd.records import Example

_TERM = re.compile(r"([+-]?)\s*(\d+)")


def load_reasoning_gym(spec: ReasoningGymData, *, where: str) -> list[Example]:
    """Generate ``spec.size`` problems. Equal seeds give equal problems (the package is pinned).

    The package seeds item i with ``seed + i``, so that its sets of seeds 1 and 2 are almost the same; here the recipe's
    seed is hashed first, and different seeds give unrelated sets.

    Raises: RecipeError for an unknown task or a setting that the task does not have.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if spec.task not in DATASETS:
        raise RecipeError(f"{where}.task: '{spec.task}' is no reasoning-gym task{did_you_mean(spec.task, DATASETS)}")
    try:
        dataset = reasoning_gym.create_dataset(spec.task, size=spec.size, seed=_spread(spec.seed), **spec.config)
    except (TypeError, AssertionError, ValueError) as error:
        raise RecipeError(f"{where}.config: task '{spec.task}' does not accept it: {error}") from None
    examples = [_example(spec, index, dataset[index], where) for index in range(spec.size)]
    if any(example.solution is None for example in examples) and spec.worked_share < 1:
        raise RecipeError(f"{where}.worked_share: task '{spec.task}' has no worked solutions to leave out")
    return examples


def _spread(seed: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big") >> 1


def _shows_steps(identity: str, share: float) -> bool:
    """A fixed ``share`` of all problems, drawn by their ids."""
    return _spread(f"steps {identity}") < share * 2**31


def _example(spec: ReasoningGymData, index: int, entry: Mapping[str, Any], where: str) -> Example:
    identity = f"{spec.task}-{spec.seed}-{index}"
    answer, solution = entry["answer"], worked_solution(spec.task, entry)
    fields = {"metadata": dict(entry["metadata"]), "expression": entry["metadata"].get("expression", "")}
    if spec.options is not None:
        seed = _spread(f"options {identity}")
        found = signed(str(answer)) if spec.options == "sign" else lettered(str(answer), count=spec.options, seed=seed)
        if found is None:
            raise RecipeError(f"{where}.options: the answer {answer!r} of task '{spec.task}' is no plain number")
        fields["options"], letter = found
        solution = solution and _boxed(solution, str(answer), letter)
        answer = letter
    if solution is not None and not _shows_steps(identity, spec.worked_share):
        solution = f"\\boxed{{{answer}}}"
    return Example(id=identity, question=str(entry["question"]), answer=answer, solution=solution, fields=fields)


def _boxed(solution: str, number: str, letter: str) -> str:
    """The same steps, with the letter of what they lead to in the box."""
    return solution.removesuffix(f"\\boxed{{{number}}}") + f"\\boxed{{{letter}}}"


def worked_solution(task: str, entry: Mapping[str, Any]) -> str | None:
    r"""A step-by-step solution ending in ``\boxed{}``, where the task's metadata allows one; else None."""
    if task == "chain_sum":
        return _running_sum(str(entry["metadata"]["expression"]))
    if task == "gsm_symbolic":
        steps = str(entry["metadata"]["answer_cot"]).rsplit("####", 1)[0].strip()
        return f"{steps}\n\\boxed{{{entry['answer']}}}"
    return None


def _running_sum(expression: str) -> str:
    """``42 - 25 - 73`` -> ``42-25=17, 17-73=-56, \\boxed{-56}``."""
    terms = [(sign or "+", int(digits)) for sign, digits in _TERM.findall(expression)]
    total, steps = terms[0][1] if terms[0][0] == "+" else -terms[0][1], []
    for sign, number in terms[1:]:
        following = total + number if sign == "+" else total - number
        steps.append(f"{total}{sign}{number}={following}")
        total = following
    return ", ".join([*steps, f"\\boxed{{{total}}}"])
