"""--dry-run: numbers of the batch and of memory, checked against the parts that will do the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlkd.arithmetic import activation_bytes, describe, learner_state_bytes, packed_tokens
from rlkd.models.shape import model_shape
from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.models import PretrainedModel, ScratchModel

RECIPE = Path(__file__).parents[2] / "recipes" / "kdrl.yaml"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, overrides)


def small(*, kv_heads: int | None = None, intermediate_size: int | None = None) -> ScratchModel:
    sizes = {"kv_heads": kv_heads, "intermediate_size": intermediate_size}
    return ScratchModel.model_validate({"hidden_size": 32, "heads": 4, "layers": 2, "context_length": 64, **sizes})


@pytest.mark.parametrize("spec", [small(), small(kv_heads=2), small(intermediate_size=40)], ids=["mha", "gqa", "mlp"])
def test_parameters_are_transformers_own_count(spec: ScratchModel) -> None:
    shape = model_shape(spec)
    assert shape is not None
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=32,
        intermediate_size=spec.intermediate_size or 128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=spec.kv_heads or 4,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.tie_weights()
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_char_vocabulary_is_the_tokenizers() -> None:
    from rlkd.models.tokenizer import build_tokenizer

    spec = small()
    shape = model_shape(spec)
    assert shape is not None
    assert shape.vocabulary == len(build_tokenizer(spec.tokenizer, (), spec.context_length))


def test_a_pretrained_folder_is_read_from_its_config(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path)
    shape = model_shape(PretrainedModel(path=str(tmp_path)))
    assert shape is not None
    # two tables (untied), q k v o, gate up down, two norms, last norm
    assert shape.parameters == 2 * 100 * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 + 16
    assert model_shape(PretrainedModel(path="someone/not-here")) is None


def test_packed_tokens_share_the_prompt() -> None:
    """A group costs its prompt once and each completion without its last token."""
    chosen = recipe(
        "rollout.prompts_per_step=3",
        "learner.updates_per_step=1",
        "rollout.group_size=4",
        "rollout.max_prompt_tokens=20",
        "rollout.max_new_tokens=30",
    )
    tokens, micro_batches = packed_tokens(chosen)
    assert tokens == 3 * (20 + 4 * 29)
    assert micro_batches == 1
    assert (
        packed_tokens(
            chosen.model_copy(update={"learner": chosen.learner.model_copy(update={"tokens_per_micro_batch": 136})})
        )[1]
        == 3
    )


@pytest.mark.parametrize(
    ("name", "tokens", "generated"),
    [
        ("pi_distill", 3 * (112 + 4 * 29) + 3 * (20 + 4 * 29), 12 * 30),
        # a second turn continues its own first answer; revisions share the bare prompt with first answers
        ("rltf_sd", 3 * (20 + 8 * 29) + 12 * (192 + 29), 24 * 30),
        ("rltf_fm", 3 * (20 + 4 * 29) + 12 * (192 + 29) + 12 * (192 + 64), 24 * 30),
    ],
)
def test_every_row_of_a_rollout_counts(name: str, tokens: int, generated: int) -> None:
    sizes = {"prompts_per_step": 3, "group_size": 4, "max_prompt_tokens": 20, "max_new_tokens": 30}
    shrunk = [*(f"rollout.{key}={value}" for key, value in sizes.items()), "learner.updates_per_step=1"]
    chosen = load_recipe(RECIPE.with_name(f"{name}.yaml"), shrunk)
    assert packed_tokens(chosen)[0] == tokens
    assert f"at most {generated} generated tokens (30 each)" in describe(chosen)


def test_states_of_a_rank_follow_zero() -> None:
    shape = model_shape(recipe().policy)
    assert shape is not None

    def bytes_a_parameter(*overrides: str) -> float:
        return learner_state_bytes(recipe("cluster.learner_workers=4", *overrides), shape) / shape.parameters

    assert bytes_a_parameter() == 16
    assert bytes_a_parameter("learner.precision=bf16") == 2 + 4 + 12
    assert bytes_a_parameter("learner.zero_stage=1") == 4 + 4 + 8 / 4
    assert bytes_a_parameter("learner.zero_stage=2") == 4 + (4 + 8) / 4
    assert bytes_a_parameter("learner.zero_stage=3") == 16 / 4
    assert bytes_a_parameter("learner.zero_stage=2", "learner.offload_optimizer=true") == 4 + 4 / 4


def test_activations_are_what_autograd_saves() -> None:
    """Bytes that a forward pass of the same shape keeps for its backward pass, head aside."""
    chosen = recipe("learner.tokens_per_micro_batch=64", "policy.tokenizer.vocab_size=384")
    policy = chosen.policy
    assert isinstance(policy, ScratchModel)
    shape = model_shape(policy)
    assert shape is not None
    config = LlamaConfig(
        vocab_size=384, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=policy.heads, num_key_value_heads=policy.heads,
    )  # fmt: skip
    model = LlamaForCausalLM(config).model
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(1, 64, dtype=torch.long))
    measured = sum(saved.values())
    assert 0.5 < activation_bytes(chosen, shape) / measured < 1.5


def test_words_name_every_stage_and_figure() -> None:
    text = describe(recipe("stages.kdrl.steps=17", "rollout.prompts_per_step=32", "rollout.group_size=8"))
    for part in (
        "0. sft:",
        "1. sft-teacher:",
        "2. kdrl: 17 steps, 68 updates",
        "32 prompts x 8 completions = 256 rollouts",
    ):
        assert part in text
    assert f"at most {256 * 48:,} generated tokens" in text
    assert f"at most {256 * (40 + 48):,} tokens through the teacher" in text
    without = describe(recipe("objective={kind: grpo}"))
    assert "through the teacher" not in without


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("grpo", ["objective.kl_coef=0.01"], "reference policy: 3.2 MiB"),
        ("grpo", ["objective.kl_coef=0.01", "learner.lora={rank: 4}"], None),  # the base without its adapters
        ("opsd", [], "self-teacher: 3.2 MiB"),
        ("opsd", ["teacher.weights=ema"], "self-teacher: 6.4 MiB"),
        ("opsd", ["teacher.weights=live"], None),
        ("kdrl", [], None),
    ],
)
def test_memory_counts_what_a_learner_keeps_beside_its_policy(
    name: str, overrides: list[str], said: str | None
) -> None:
    text = describe(load_recipe(RECIPE.parent / f"{name}.yaml", overrides))
    assert (said in text) if said else "on each learner rank" not in text


@pytest.mark.parametrize("path", sorted(RECIPE.parent.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_described(path: Path) -> None:
    chosen = load_recipe(path)
    text = describe(chosen)
    for stage in chosen.stages:
        assert f". {stage.name}: " in text
    assert "memory, estimated" in text
