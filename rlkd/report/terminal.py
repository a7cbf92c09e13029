"""Sampled rollouts in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlkd.errors import CheckpointError
from rlkd.report.reading import Row, read_run, readable_tokens

_STRONG = 2.0  # nats of teacher minus policy at which a token's colour is full


def show_rollouts(
    folder: str | Path,
    *,
    step: int | None = None,
    stage: str | None = None,
    limit: int = 8,
    out: Console | None = None,
) -> None:
    """Print the rollouts kept at a step of a stage (default: the last of each).

    Tokens are green where the teacher gives them more probability than the policy, red where less; without a teacher
    the unlikely ones are red.

    Raises: CheckpointError when nothing was kept at that step.
    """
    out = out or Console(highlight=False, soft_wrap=True)
    kept = read_run(folder).rollouts
    if not kept:
        raise CheckpointError(f"{folder}: no rollouts were kept yet")
    chosen = [at for at in kept if stage in (None, at[0]) and step in (None, at[1])]
    if not chosen:
        asked = " ".join([f"stage '{stage}'"] * (stage is not None) + [f"step {step}"] * (step is not None))
        there = ", ".join(f"{name} {at}" for name, at in kept)
        raise CheckpointError(f"{folder}: none kept at {asked}; there are {there}")
    name, at = chosen[-1]
    group = None
    for row in kept[name, at][:limit]:
        if row["group"] != group:
            group = row["group"]
            out.print(Text(f"\n{name}, step {at}, {row['id']}, answer {row['answer']!r}", "bold"))
            out.print(Text(row["prompt"], "dim"))
        out.print(_facts(row))
        out.print(_tokens(row))


def _facts(row: Row) -> Text:
    score = "abstained" if row["score"] is None else f"score {row['score']:g}"
    style = "yellow" if row["score"] is None else "green" if row["score"] >= 1 else "red"
    text = Text(f"  {score}", style)
    notes = f"  advantage {row['advantage']:+.3f}  {len(row['tokens'])} tokens, {row['finish_reason']}"
    notes += f"  read as {row['parsed']!r}" if row["parsed"] is not None else ""
    return text.append(notes + (f"  ({row['reason']})" if row["reason"] else ""), "dim")


def _tokens(row: Row) -> Text:
    policy = row.get("policy_logprobs") or row["rollout_logprobs"]
    teacher = row.get("teacher_logprobs")
    text = Text("  ")
    for index, token in enumerate(readable_tokens(row["tokens"])):
        push = teacher[index] - policy[index] if teacher else min(0.0, policy[index] + 1.0)
        share = min(1.0, abs(push) / _STRONG)
        fade = round(235 - 160 * share)
        red, green = (235, fade) if push < 0 else (fade, 235)
        text.append(token, f"rgb({red},{green},{fade})")
    return text
