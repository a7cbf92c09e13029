"""Every way to write a recipe wrong is an error that names the place and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlkd.errors import RecipeError
from rlkd.recipe import has_launch_lines, load_recipe, validate_recipe

ROOT = Path(__file__).parents[2]
KDRL = ROOT / "recipes" / "kdrl.yaml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


ASYNC = ["cluster.schedule=async", "cluster.max_staleness=1"]
SHAPED = "verifier={kind: compose, options: {outcome: math, shaping: [{verifier: repetition}]}}"


def routed(name: str, *more: str) -> str:
    listed = f"teachers: {{{name}: {{model: {{kind: pretrained, path: x}}}}}}"
    return f"teacher={{{', '.join(['kind: routed', 'field: source', listed, *more])}}}"


def fault(*overrides: str, recipe: Path = KDRL) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optm.lr=1.0", ["optm: unknown key", "did you mean 'optim'"]),
        ("optim.learning_rate=1.0", ["optim.learning_rate: unknown key", "known here: betas"]),
        ("objective.kind=kdlr", ["objective.kind: given 'kdlr'", "kdrl", "did you mean 'kdrl'"]),
        ("objective={distill_coef: 1}", ["objective.kind: missing"]),
        ("rollout.group_size=1.5", ["rollout.group_size", "integer", "given 1.5"]),
        ("rollout.group_size=-1", ["rollout.group_size", "greater than 0", "given -1"]),
        ("optim.lr='1e-6 '", ["optim.lr", "valid number", "'1e-6 '"]),
        ("stages.sft.stepz=3", ["stages.0.stepz: unknown key", "did you mean 'steps'"]),
        ("stages.warmup.steps=3", ["stages.warmup", "sft, sft-teacher, kdrl"]),
        ("policy.tokenizer.vocab=300", ["policy.tokenizer.vocab: unknown key", "vocab_size"]),
        ("policy.heads=5", ["policy", "multiple of 2 x heads"]),
        ("name=a/b", ["name: 'a/b' names a folder; use letters, digits"]),
        ("stages.sft.name=../x", ["stages.0.name: '../x' names a folder"]),
        (
            "teacher={kind: server, url: h:80, model: m, tokenizer: t}",
            ["teacher.url: given 'h:80'", "http://host:8000"],
        ),
        ("feedback={source: {kind: judge, url: h, model: m}}", ["feedback.source.url: given 'h'", "http://host:8000"]),
        ("objective.estimator=k1", ["zero expected gradient", "k2", "form: advantage"]),
        ("objective.distill_coef={kind: annealed, start: 0.1, end: 0.2, delta: 0.01}", ["must not exceed start"]),
        ("novalue", ["dotted.key=value"]),
        ("optim.lr.deep=3", ["optim.lr", "no keys below"]),
        ("objective.kind=grpo", ["objective.distill_coef: is not of kind 'grpo'", "'objective={kind: grpo, ...}'"]),
        ("objective=grpo", ["objective: given 'grpo'; write a section of keys, e.g. objective: {kind: ...}"]),
        ("learning_rate=1", ["learning_rate: unknown key; did you mean 'optim.lr'?"]),
        ("stages[0].steps=5", ["named with dots: stages.0.steps=5"]),
        ("objective={kind:", ["quote the whole override for the shell"]),
        ("cluster.schedule=asnc", ["should be 'sync' or 'async'", "given 'asnc'", "did you mean 'async'"]),
        ("optim.betas=[0.9]", ["optim.betas: given [0.9]; 2 values are wanted"]),
    ],
)
def test_a_wrong_value_names_path_and_remedy(override: str, said: list[str]) -> None:
    message = fault(override)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.group_size=1"], "rollout.group_size: 1 with advantage.kind 'group'"),
        (["rollout.top_p=0.9"], "rollout.top_p/top_k: 0.9/0"),
        (["rollout.top_k=20"], "rollout.top_p/top_k: 1.0/20"),
        (["rollout.top_p=0.9", "stages=[]"], "rollout.top_p/top_k: 0.9/0 has no effect without an RL stage"),
        (["eval.top_p=0.9", "eval.temperature=0"], "eval.top_p: 0.9 has no effect on greedy samples"),
        (["eval.every=2", "stages=[{kind: sft, steps: 3}]"], "eval.every: 2 has no effect without a stage of kind"),
        (
            ["data.eval=null"],
            "eval.samples, eval.temperature: no effect, since there is no data.eval; write data.eval, or",
        ),
        (["data.eval=null", "eval={every: 5}"], "eval.every: no effect, since there is no data.eval"),
        (["rollout.max_prompt_tokens=900"], "exceeds policy.context_length"),
        (["teacher=null"], "objective.kind: 'kdrl' needs a teacher"),
        (["teacher.model.tokenizer={kind: char}"], "differs from policy.tokenizer"),
        (["rollout.temperature=0.7"], "teacher.engine 'vllm'"),
        (["cluster.max_staleness=1"], "no effect with schedule 'sync'"),
        (["cluster.schedule=async", "cluster.placement=colocated"], "cluster.placement: 'colocated'"),
        (
            ["cluster.weights=ipc", "cluster.placement=separate"],
            "cluster.weights: 'ipc' shares the memory of one GPU, with cluster.placement 'separate'",
        ),
        (["cluster.weights=ipc", "cluster.schedule=async"], "cluster.weights: 'ipc' shares the device in turns"),
        (["cluster.weights=ipc", "engine.tensor_parallel=2"], "engine.tensor_parallel: 2 with cluster.weights: 'ipc'"),
        (["cluster.weights=nccl", "cluster.placement=colocated"], "cluster.weights: 'nccl' with cluster.placement"),
        (
            ["engine.tensor_parallel=2", "cluster.placement=colocated"],
            "engine.tensor_parallel: 2 with cluster",
        ),
        (
            ["learner.offload_optimizer=true", "learner.zero_stage=0"],
            "learner.offload_optimizer: needs learner.zero_stage",
        ),
        (["stages.kdrl.name=sft"], "the name 'sft' is used 2 times"),
        (["eval={samples: 4}"], "eval.samples: 4 greedy samples"),
        (["optim.warmup_steps=100000"], "optim.warmup_steps: 100000 exceeds"),
        (["data.prompt=hello"], "data.prompt"),
        (["learner.updates_per_step=1000"], "learner.updates_per_step: 1000 exceeds"),
        (["objective.ratio=sequence", "objective.dual_clip=3"], "objective.dual_clip: bounds single tokens"),
        (["objective.form=advantage", "objective.estimator=k3"], "objective.estimator: 'k3' belongs to form 'joint'"),
        (["objective.correction={low: 0.5}"], "objective.correction: level, low and high act on nothing"),
        (["objective.correction={kind: truncate, low: 0.5}"], "objective.correction.low: 0.5 is not read"),
        (["objective.correction={kind: mask, high: 0.5}"], "objective.correction: low 0.0 and high 0.5 must have 1"),
        (ASYNC, "but nothing corrects for the older weights"),
        (
            ["objective={kind: opd, divergence: forward_kl, correction: {kind: truncate}}"],
            "objective.correction.level: 'token' acts on nothing",
        ),
        (["objective={kind: opd}", *ASYNC], "write objective.correction: {kind: truncate, level: sequence, high: 2.0}"),
        (["learner.lora={dropout: 0.1}"], "learner.lora.dropout: 0.1"),
        (["learner.lora={target_modules: [q_proj, lm_head]}"], "target_modules: 'lm_head' cannot have an adapter"),
        (["learner.lora={}", "stages=[{kind: sft, steps: 3}]"], "learner.lora: is for stages of kind 'rl'"),
        (["learner.lora={target_modules: [embed_tokens]}"], "'embed_tokens' cannot have an adapter"),
        (["cluster.learner_workers=3"], "stages.0.batch_size: 16 rows do not divide among 3 learner_workers"),
        ([routed("policy")], "'policy' is the trained model's own name"),
        ([routed("a/b")], "'a/b' names a folder"),
        ([routed("small", "default: smal")], "teacher.default: 'smal' is none of ['small']"),
        (
            ["rollout.group_size=1", "advantage={kind: reinforce}", SHAPED],
            "verifier.options.shaping: is centred on its group",
        ),
    ],
)
def test_contradictions_are_found_before_anything_starts(overrides: list[str], said: str) -> None:
    assert said in fault(*overrides)


def test_a_recipe_without_evaluation_leaves_its_section_empty() -> None:
    assert load_recipe(KDRL, ["data.eval=null", "eval={}"]).data.eval is None


def test_options_need_a_place_in_the_prompt_and_a_verifier_of_letters() -> None:
    alphamed = ROOT / "recipes" / "alphamed.yaml"
    assert "data.train.options: data.prompt does not list them" in fault("data.prompt='{question}'", recipe=alphamed)
    message = fault("verifier={kind: math}", recipe=alphamed)
    assert "data.train.options: the answer is a letter, which verifier 'math' does not judge" in message
    assert "data.eval.options" in message
    assert "data.train.options" in fault("data.train.options=11", recipe=alphamed)


def test_all_faults_are_reported_at_once() -> None:
    message = fault("optim.lrr=1", "rollout.groupsize=3")
    assert "optim.lrr" in message
    assert "rollout.groupsize" in message


def test_a_number_that_yaml_reads_as_text_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, re.sub(r"^optim: {lr: [^,]+,", "optim: {lr: 2e-4,", KDRL.read_text(), flags=re.MULTILINE))
    message = fault(recipe=path)
    assert "optim.lr" in message
    assert "given '2e-4'" in message
    assert "write 2.0e-4" in message


def test_an_override_may_be_written_as_people_write_numbers() -> None:
    assert load_recipe(KDRL, ["optim.lr=2e-6"]).optim.lr == 2e-6


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, KDRL.read_text().replace("seed: 0", "seed: 0\nseed: 1", 1))
    assert "the key 'seed' is given twice" in fault(recipe=path)


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    assert "kdrl.yaml" in fault(recipe=ROOT / "recipes" / "kdlr.yaml")
    assert "must hold a mapping" in fault(recipe=written(tmp_path, "- 1\n"))
    assert "not readable YAML" in fault(recipe=written(tmp_path, "a: [1\n"))


def test_one_line_turns_kdrl_into_grpo() -> None:
    recipe = load_recipe(KDRL, ["objective={kind: grpo}"])
    assert recipe.objective.kind == "grpo"


def test_a_resolved_recipe_validates_to_itself() -> None:
    recipe = load_recipe(KDRL)
    assert validate_recipe(recipe.model_dump(mode="json"), where="again") == recipe


def test_schema_is_torch_free() -> None:
    import subprocess
    import sys

    code = "import sys, rlkd.recipe, reward; print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_is_valid_and_launchable(path: Path) -> None:
    load_recipe(path)
    assert has_launch_lines(path)
    assert path.stat().st_mode & 0o111, "a recipe is executable"


def test_settings_that_only_rl_reads_are_refused_where_offline_stages_have_their_own() -> None:
    """A rate for REDI's stage in the wrong section would leave the stage at its own."""
    redi = ROOT / "recipes" / "redi.yaml"
    with pytest.raises(RecipeError, match=r"optim: is read by stages of kind 'rl' alone; write .*stages\.redi\.optim"):
        load_recipe(redi, ["optim.lr=1.0e-5"])
    load_recipe(
        KDRL, ["stages=[{kind: sft, steps: 30, max_length: 72}]"]
    )  # a trial of its SFT keeps the other sections
