"""Which precision a run takes where the recipe leaves it to the machine."""

from __future__ import annotations

from typing import Any

import pytest

from rlkd.cluster import Hardware, slow_precisions
from rlkd.launch import Launch
from rlkd.recipe import Recipe, validate_recipe

NATIVE, EMULATED, NONE = {"avx512_f": True, "avx512_bf16": True}, {"avx512_f": True}, {"avx2": True}


def recipe(precision: str | None, dtype: str = "auto") -> Recipe:
    train = {"kind": "reasoning_gym", "task": "chain_sum", "size": 8, "seed": 0}
    raw: dict[str, Any] = {"name": "precision", "policy": {"kind": "scratch"}, "data": {"train": train}}
    raw |= {"learner": {"precision": precision}, "engine": {"dtype": dtype}}
    return validate_recipe(raw, where="test")


@pytest.mark.parametrize(
    ("precision", "capabilities", "gpu", "expected"),
    [
        ("auto", NATIVE, False, "bf16"),
        ("auto", {"amx_bf16": True}, False, "bf16"),
        ("auto", {"neon": True, "bf16": True}, False, "bf16"),  # Arm
        ("auto", EMULATED, False, "fp32"),
        ("auto", NONE, False, "fp32"),
        ("auto", NONE, True, "bf16"),
        (None, NATIVE, False, "fp32"),
        (None, NONE, True, "bf16"),
        ("bf16", NONE, False, "bf16"),
        ("fp32", NATIVE, True, "fp32"),
    ],
)
def test_precision_by_machine(
    precision: str | None, capabilities: dict[str, bool], gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert Launch().resolve(recipe(precision)).learner.precision == expected


def test_the_launcher_decides_where_the_recipe_says_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: NONE)
    assert Launch(precision="bf16").resolve(recipe("auto")).learner.precision == "bf16"


def test_a_slow_precision_is_told_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(asked: Recipe, hardware: Hardware, capabilities: dict[str, bool]) -> list[str]:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
        return [text.split(":")[0] for text in slow_precisions(asked, hardware)]

    laptop, server = Hardware(2, 0), Hardware(16, 8)
    assert told(recipe("bf16", "bfloat16"), laptop, NONE) == ["learner.precision bf16", "engine.dtype bfloat16"]
    assert told(recipe("bf16"), laptop, NONE) == ["learner.precision bf16"]
    assert told(recipe("bf16", "bfloat16"), laptop, EMULATED) == []
    assert told(recipe("bf16", "bfloat16"), server, NONE) == []
    assert told(recipe("fp32", "float32"), laptop, NONE) == []
