"""``rlkd show``: a recipe with its defaults, and what its first example looks like to the policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlkd.errors import RecipeError
from rlkd.recipe import Recipe
from rlkd.recipe.schema import OfflineStage, SftStage

if TYPE_CHECKING:
    from rlkd.data.prompt import PromptBuilder
    from rlkd.records import Prompt


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120).rstrip()


def json_schema() -> str:
    """JSON schema of the recipe file."""
    return json.dumps(Recipe.model_json_schema(), indent=1)


def _teacher_side(recipe: Recipe, builder: PromptBuilder, prompt: Prompt) -> list[str]:
    """What a teacher with privileged information is given instead, or why this row has no such side."""
    from rlkd.data.privileged import PrivilegedBuilder, show

    privileged = PrivilegedBuilder.of(recipe, builder)
    if privileged is None:
        return []
    attached = privileged.attach([prompt])
    notes = [f"  note: {reason}" for reason in attached.noted]
    return ["", "both sides, as text", show(attached.prompts), *notes]


def _second_turn(recipe: Recipe, builder: PromptBuilder, prompt: Prompt) -> list[str]:
    """What follows a first answer that is wrong, and what the feedback is predicted from."""
    from reward.verdict import Verdict
    from rlkd.data.turns import TurnBuilder
    from rlkd.recipe.coefficients import always_zero
    from rlkd.recipe.objectives import RltfObjective
    from rlkd.recipe.privileged import RuleFeedback
    from rlkd.rollout.feedback import Attempt, RuleCritic

    spec = recipe.feedback
    if spec is None:
        return []
    turns, attempt = TurnBuilder(builder, spec), "(an attempt that ends in 0)"
    said = f"(what {spec.source.model} says)" if not isinstance(spec.source, RuleFeedback) else ""
    if isinstance(spec.source, RuleFeedback):
        (found,) = RuleCritic(spec.source).comment([Attempt(prompt.example, attempt, Verdict.wrong("0"))])
        said = found or ""
    tokenizer = builder.tokenizer
    second = turns.second_prompt(prompt, (*turns.encode(attempt), tokenizer.eos_token_id), turns.fit(said)[0])
    parts = {"second turn, after a wrong answer": second}
    if isinstance(recipe.objective, RltfObjective) and not always_zero(recipe.objective.feedback_coef):
        parts["the critic's prompt, continued with the feedback"] = turns.critic_prompt(prompt.example, attempt)
    return [""] + [
        f"{title}, {len(ids)} tokens\n" + "\n".join(f"  | {line}" for line in tokenizer.decode(ids).split("\n"))
        for title, ids in parts.items()
    ]


def show_example(recipe: Recipe, *, root: Path, index: int = 0) -> str:
    """One training example: rendered prompt, tokens, gold answer, fine-tuning target.

    Args:
        root: folder that relative data paths start at.
        index: place in ``data.train``.

    Raises: RecipeError when there is no such example, or its template, fields or model are unusable.
    """
    from reward.pool import VerifierPool
    from rlkd.data.prompt import PromptBuilder
    from rlkd.data.source import load_sources, tokenizer_texts
    from rlkd.models import tokenizer_of

    root = root / recipe.data.dir if recipe.data.dir else root
    examples = load_sources(recipe.data.train, where="data.train", root=root).examples
    if not 0 <= index < len(examples):
        raise RecipeError(f"--index: {index}; data.train has {len(examples)} examples")

    tokenizer = tokenizer_of(recipe.policy, where="policy", texts=partial(tokenizer_texts, examples))
    builder = PromptBuilder(tokenizer, recipe.data)
    example = examples[index]
    prompt = builder.prompt(example)
    lines = [f"data.train, example {index} of {len(examples)}: {example.id}", ""]
    lines += [
        _part("prompt", tokenizer, prompt.token_ids),
        f"  limit: rollout.max_prompt_tokens {_limit(recipe, prompt)}",
    ]
    lines += _teacher_side(recipe, builder, prompt) + _second_turn(recipe, builder, prompt)
    with VerifierPool({"name": recipe.verifier.kind, **recipe.verifier.options}, workers=1) as pool:  # it may hang
        verdict = pool.check_golds([example.for_verifier()])[0]
    judged = f"refuses: {verdict.detail}" if verdict.abstained else "accepts"
    lines += ["", f"gold answer, which verifier '{recipe.verifier.kind}' {judged}", f"  {example.answer!r}", ""]
    lines += [
        f"stages.{stage.name} learns from pairs of a right and a wrong trace ({stage.pairs.kind}), after this prompt\n"
        for stage in recipe.stages
        if isinstance(stage, OfflineStage)
    ]
    for stage in recipe.stages:
        if isinstance(stage, SftStage) and stage.target == "policy":
            lines += _fine_tuned(stage, builder, prompt)
    return "\n".join(lines).rstrip()


def _fine_tuned(stage: SftStage, builder: PromptBuilder, prompt: Prompt) -> list[str]:
    """What an SFT stage trains of an example."""
    where, example = f"stages.{stage.name}", prompt.example
    if stage.data is not None:
        return [f"{where} fine-tunes on its own data"]
    if example.solution is None:
        return [f"{where}: this example has no solution to fine-tune on"]
    completion = builder.completion_ids(example, prompt)
    whole = len(prompt.token_ids) + len(completion)
    prompts = [name for name in stage.contexts if name != "critique"]
    after = "" if stage.contexts == ["bare"] else f", after each of the prompts {', '.join(prompts)}"
    after += "; and feedback after the critic's" if "critique" in stage.contexts else ""
    return [
        _part(f"{where} trains these tokens and no others{after}", builder.tokenizer, completion),
        f"  with the bare prompt {whole} of {where}.max_length {stage.max_length}",
    ]


def _limit(recipe: Recipe, prompt: Any) -> str:
    limit, length = recipe.rollout.max_prompt_tokens, len(prompt.token_ids)
    return f"{limit}" if length <= limit else f"{limit}, exceeded: this example is left out"


def _part(title: str, tokenizer: Any, ids: Sequence[int]) -> str:
    """Text with special tokens, then the tokens one by one."""
    special = set(tokenizer.all_special_ids)
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    shown = " ".join(
        f"{'*' if token in special else ''}{piece!r}:{token}" for token, piece in zip(ids, pieces, strict=True)
    )
    count = sum(token in special for token in ids)
    return (
        f"{title} ({len(ids)} tokens, {count} special)\n"
        + "\n".join(f"  | {line}" for line in text.split("\n"))
        + f"\n  tokens (* special): {shown}"
    )
