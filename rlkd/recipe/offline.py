"""Offline learning from right and wrong traces: where pairs come from, what is made of them, when to stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rlkd.recipe.base import Positive, Section

Weight = Annotated[float, Field(ge=0)]


# ---------------------------------------------------------------- where pairs come from


class FilePairs(Section):
    """What ``rlkd data pairs`` wrote: question, answer, chosen and rejected. Relative paths start at ``data.dir``."""

    kind: Literal["file"] = "file"
    path: str


class CardPairs(Section):
    """Traces of a data card, judged in the stage by the recipe's verifier: a right and a wrong one of a problem."""

    kind: Literal["card"] = "card"
    name: str
    label: Literal["verifier", "claim", "both"] = Field(
        default="verifier", description="whose word makes a trace right: the verifier's, the publisher's, or both"
    )
    keep: dict[str, list[Any]] = Field(default_factory=dict, description="field -> values; other rows are left out")
    drop: dict[str, list[Any]] = Field(default_factory=dict, description="field -> values of rows to leave out")
    pairs_per_problem: Positive = 1


class SampledPairs(Section):
    """Traces sampled here from one of the recipe's models on ``data.train``, judged by its verifier."""

    kind: Literal["sampled"] = "sampled"
    model: Literal["teacher", "policy"] = "teacher"
    samples: Annotated[int, Field(ge=2)] = Field(default=4, description="traces a problem")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    problems: Positive | None = Field(default=None, description="the first so many of data.train; default: all")
    pairs_per_problem: Positive = 1


PairSource = Annotated[FilePairs | CardPairs | SampledPairs, Field(discriminator="kind")]


# ---------------------------------------------------------------- what is made of them


class RediObjective(Section):
    """Right traces up, wrong ones down with a smaller weight; length-normalised, no reference (REDI, 2505.24850)."""

    kind: Literal["redi"] = "redi"
    rejected_weight: Annotated[float, Field(ge=0, le=1)] = Field(default=0.8, description="the paper's alpha")
    reweighting: Weight = Field(default=0.0, description="gamma: spare wrong traces that are unlikely already; 0: off")


class SymmetricObjective(Section):
    """REDI with weight 1 on wrong traces: the limit of DPO and SimPO, which collapses at rates that REDI bears."""

    kind: Literal["symmetric"] = "symmetric"


class PairSftObjective(Section):
    """REDI with weight 0: the right traces alone. The wrong ones are not even read."""

    kind: Literal["sft"] = "sft"


class DpoObjective(Section):
    """Direct preference optimisation against the stage's first weights (2305.18290)."""

    kind: Literal["dpo"] = "dpo"
    inverse_temperature: Annotated[float, Field(gt=0)] = Field(default=0.1, description="the paper's beta")


class SimpoObjective(Section):
    """Length-normalised preference with a margin and without a reference (2405.14734)."""

    kind: Literal["simpo"] = "simpo"
    inverse_temperature: Annotated[float, Field(gt=0)] = Field(default=2.0, description="the paper's beta")
    margin: Weight = Field(default=1.0, description="the paper's gamma")


PairObjective = Annotated[
    RediObjective | SymmetricObjective | PairSftObjective | DpoObjective | SimpoObjective, Field(discriminator="kind")
]


def reads_wrong(objective: PairObjective) -> bool:
    """Whether wrong traces enter the gradient; where they don't, no pass is spent on them."""
    return objective.kind != "sft" and getattr(objective, "rejected_weight", 1.0) > 0


# ---------------------------------------------------------------- when it goes wrong


class CollapseSpec(Section):
    """Both log-probs fall off together while the gradient norm spikes; a slow fall or a lone spike is neither."""

    action: Literal["warn", "stop", "off"] = "warn"
    window: Positive = Field(default=20, description="updates whose medians are the level before")
    recent: Positive = Field(default=5, description="updates whose medians are the level now")
    fall: Annotated[float, Field(gt=0)] = Field(default=0.25, description="nats a token that both lose")
    spike: Annotated[float, Field(gt=1)] = Field(default=3.0, description="gradient norm, times its median before")
