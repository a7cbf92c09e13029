"""What a recipe may say about privileged information, self-teachers, feedback, and the objectives over them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlkd.recipe.base import Fraction, Positive, Section, Url
from rlkd.recipe.coefficients import Coef, CoefSchedule, ConstantCoef, LinearCoef, PolicyGradient

TEACHER_TURN = """{prompt}

Here is a reference solution to this problem:
=== Reference Solution Begin ===
{privileged}
=== Reference Solution End ===

Read it until you understand it. Then solve the problem yourself, from the beginning and in your own words:"""


class PrivilegedSpec(Section):
    """Extra context that only the teacher sees: a field of the data, rendered into a prompt of its own."""

    field: str = Field(default="solution", description="solution, answer, or a name under data.*.fields.extra")
    template: str = Field(
        default=TEACHER_TURN,
        description="the teacher's user turn; {privileged} and {prompt}, the student's whole user turn and with it "
        "what is said about the answer's form (or {question} alone)",
    )
    system: str | None = Field(default=None, description="the teacher's system turn; default: data.system")
    max_tokens: Positive = Field(default=512, description="of the privileged text alone; its own budget")
    max_prompt_tokens: Positive | None = Field(
        default=None, description="of the whole teacher prompt; default: rollout.max_prompt_tokens + max_tokens"
    )
    too_long: Literal["truncate", "exclude"] = Field(
        default="truncate", description="privileged text over max_tokens: keep its end, or leave the row out; counted"
    )
    missing: Literal["error", "exclude", "plain"] = Field(
        default="error", description="rows without the field; plain: trained without privileged information"
    )
    in_prompt: Literal["exclude", "keep"] = Field(
        default="exclude", description="rows whose student prompt already contains the privileged text; counted"
    )
    thinking: bool | None = Field(default=None, description="the teacher template's enable_thinking; default: unset")
    copied_run: Annotated[int, Field(ge=2)] = Field(
        default=8, description="words in a row that count as copied from the privileged text into a completion"
    )


# ---------------------------------------------------------------- teachers


class SelfTeacher(Section):
    """The policy itself in another context, scored in the learner's process: no engine, no second model on the wire."""

    kind: Literal["self"] = "self"
    weights: Literal["frozen", "ema", "live"] = Field(
        default="frozen",
        description="frozen: the stage's first weights (the base under LoRA adapters); ema: their moving average; "
        "live: the current weights, without gradient",
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="per optimizer update")


class ServerTeacher(Section):
    """A teacher behind a vLLM server's OpenAI-compatible API; it must return prompt_logprobs."""

    kind: Literal["server"] = "server"
    url: Url = Field(description="base, such as http://host:8000/v1")
    model: str = Field(description="the served model's name")
    tokenizer: str = Field(description="folder or hub id of its tokenizer, which must be the policy's")
    transport: Literal["sampled", "top_k"] = "sampled"
    top_k: Positive = Field(default=32, description="the server's --max-logprobs must allow it")
    api_key_env: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    tries: Positive = 3
    concurrency: Positive = 16


# ---------------------------------------------------------------- objectives


class _Distribution(PolicyGradient):
    """Divergence of the policy from a teacher at every sampled token, beside a policy gradient if asked for."""

    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "sampled"] = Field(
        default="forward_kl",
        description="over the whole vocabulary; forward_kl is KL(teacher || policy); "
        "sampled: the log-ratio of the sampled token as a detached advantage (reverse-KL gradient)",
    )
    mixture_weight: Fraction = Field(default=0.5, description="jensen_shannon's beta")
    clip: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="OPSD's tau: cap of one vocabulary entry's summand, nats. The published code has 0.05, the paper "
        "prints none. A policy far from its teacher is pushed away from what is capped. Not read by 'sampled'",
    )
    distill_coef: CoefSchedule = ConstantCoef(value=1.0)
    reward_coef: Coef = Field(default=0.0, description="weight of the policy gradient on the verifier's score")


class OpsdObjective(_Distribution):
    """On-policy self-distillation (OPSD, 2601.18734): the same model, knowing more, scores the policy's own samples."""

    kind: Literal["opsd"] = "opsd"
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="with a reward (2602.04942): divergence back-propagated, or subtracted from the score as a sum of "
        "sampled log-ratios before centring",
    )

    @model_validator(mode="after")
    def _reward_for_kl(self) -> OpsdObjective:
        if self.kl_in == "reward" and not self.reward_coef:
            raise ValueError("kl_in 'reward' changes the policy gradient's reward, but reward_coef is 0; write 1.0")
        return self


class OpdObjective(_Distribution):
    """On-policy distillation from a separate teacher: its whole distribution, its top-k, or the sampled tokens."""

    kind: Literal["opd"] = "opd"


class PiDistillObjective(PolicyGradient):
    """pi-Distill (2602.04942): rollouts with privileged information train the privileged and the bare view."""

    kind: Literal["pi_distill"] = "pi_distill"
    teacher_share: CoefSchedule = Field(
        default=LinearCoef(start=0.0, end=0.5, steps=100), description="the paper's alpha, in [0, 1]"
    )
    distill_coef: CoefSchedule = Field(default=ConstantCoef(value=0.25), description="the paper's beta")
    kl_in: Literal["reward", "loss"] = Field(
        default="reward",
        description="reward: summed KL(privileged || bare) taken off the score before centring (Alg. 1); "
        "loss: Eq 2-3's two KL terms, over the whole vocabulary, back-propagated",
    )
    kl_estimator: Literal["sampled", "exact"] = Field(
        default="exact", description="kl_in reward: log-ratio of the sampled token, or the whole vocabulary's KL"
    )


class RltfObjective(PolicyGradient):
    """RLTF (2602.02482): answer, feedback, revised answer; the revision is distilled back to the bare prompt."""

    kind: Literal["rltf"] = "rltf"
    self_distill_coef: CoefSchedule = Field(
        default=ConstantCoef(value=0.1), description="c_SD: revised answers on the bare prompt; 0 for RLTF-FM alone"
    )
    feedback_coef: CoefSchedule = Field(
        default=ConstantCoef(value=0.0), description="lambda: cross-entropy of the feedback's tokens (RLTF-FM)"
    )
    discount: Fraction = Field(default=0.1, description="gamma of the second turn in the first's return (code value)")
    logprob_floor: Annotated[float, Field(lt=0)] | None = Field(
        default=None, description="self-distillation leaves tokens out that are less likely than this (code: -5)"
    )
    early_termination: bool = Field(default=True, description="no second turn after a right first answer")


class AlmObjective(Section):
    """Approximate likelihood matching (2503.20083): distillation from a teacher with another tokenizer."""

    kind: Literal["alm"] = "alm"
    temperature: Annotated[float, Field(gt=0)] = 5.0
    divergence: Literal["kl", "cross_entropy", "total_variation"] = Field(
        default="kl",
        description="kl is published, for given texts; on the policy's own samples its slope in the log-likelihood is "
        "(p_policy - p_teacher) / (1 - p_policy), unbounded where the policy is sure; total_variation's is at most 1",
    )
    debias: Fraction | None = Field(
        default=None,
        description="outcome-chunk debiasing: each side's likelihood of a piece includes that the piece is over there; "
        "pieces of which the teacher believes that with less than this probability (the paper's gamma: 0.1) are joined "
        "with the next. Needs teacher.engine: transformers. null: off",
    )
    reduction: Literal["token"] = Field(default="token", description="mean over all chunks of an update")


# ---------------------------------------------------------------- feedback


class RuleFeedback(Section):
    """Feedback made from the verdict: what was read as the answer, and what is wrong with that."""

    kind: Literal["rule"] = "rule"
    wrong: str = "Your answer {parsed} is wrong. {hint}"
    unparsed: str = "No final answer could be read. {hint}"
    right: str = "Your answer {parsed} is correct."
    hint: str = Field(default="", description="appended text; {answer}, {solution} or a data field may stand in it")


class JudgeFeedback(Section):
    """A critique by a model behind an OpenAI-compatible server."""

    kind: Literal["judge"] = "judge"
    url: Url
    model: str
    instructions: str = Field(
        default="You review one attempt at a problem. Go through it step by step, name the first error and give a "
        "concrete hint, in fewer than 200 words. Do not state the final answer. Your last sentence says whether the "
        "attempt is correct or incorrect.",
    )
    show_answer: bool = Field(default=True, description="the judge sees the gold answer")
    max_tokens: Positive = Field(
        default=400, description="of its reply; the thinking in it counts too, and is not passed on"
    )
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    tries: Positive = 3
    concurrency: Positive = 16
    max_failed: Fraction = Field(
        default=0.5, description="share of a step's requests that may fail, or bring no comment, before it stops"
    )


class FeedbackSpec(Section):
    """The second turn: who comments, how it is shown, and what the critic's own prompt looks like (RLTF-FM)."""

    source: Annotated[RuleFeedback | JudgeFeedback, Field(discriminator="kind")] = RuleFeedback()
    revise: str = Field(
        default="{feedback}\n\nWrite a complete, stand-alone solution to the problem. Don't mention the feedback or "
        "your earlier attempt.",
        description="the user turn after the first answer; {feedback} is replaced",
    )
    critic: str = Field(
        default="{question}\n\nAttempt:\n{attempt}\n\nReview the attempt.",
        description="the user turn from which feedback is predicted; {question} and {attempt} are replaced",
    )
    max_tokens: Positive = Field(default=256, description="of the feedback; longer is cut and counted")
    max_prompt_tokens: Positive | None = Field(
        default=None,
        description="of the second turn's and the critic's prompt; default: rollout.max_prompt_tokens + "
        "rollout.max_new_tokens + 2 x max_tokens. A longer one ends the rollout after its first turn, counted",
    )


def teacher_kind(given: Any) -> str:
    """The tag of a teacher section; one without ``kind`` is a separate model."""
    return str(given.get("kind", "separate") if isinstance(given, dict) else getattr(given, "kind", "separate"))
