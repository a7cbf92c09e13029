"""Pairs become rows: what is kept, what is left out and counted, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from reward.verdict import Verdict
from rlkd.data.cards import load_card
from rlkd.data.rows import write_rows
from rlkd.data.source import load_sources
from rlkd.errors import DataCardError, RecipeError
from rlkd.models import context_length, materialise
from rlkd.recipe import Recipe
from rlkd.recipe.data import CardData
from rlkd.recipe.models import PretrainedModel
from rlkd.recipe.offline import CardPairs, FilePairs, PairSource, SampledPairs
from rlkd.recipe.schema import OfflineStage
from rlkd.records import Example, Prompt, Rollout, RolloutGroup
from rlkd.trainer import sampled_pairs
from rlkd.trainer.offline import check_size, count_updates, pair_rows, prepare_offline
from rlkd.trainer.pair_file import PairFile, PairReport
from rlkd.trainer.pair_sources import check_sources, gather_pairs
from rlkd.trainer.sampling import prompts_of_step

ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "1 + 1?", "answer": "2", "chosen": "It is 2.", "rejected": "It is 3."},
    {"id": "b", "question": "2 + 2?", "answer": "4", "chosen": "4", "rejected": "5"},
    {"id": "long prompt", "question": "9" * 41, "answer": "4", "chosen": "4", "rejected": "5"},
    {"id": "long trace", "question": "2 + 3?", "answer": "5", "chosen": "5", "rejected": "6" * 60},
    {"id": "same", "question": "2 + 3?", "answer": "5", "chosen": "5", "rejected": "5"},
    {"id": "held out", "question": "7 + 7?", "answer": "14", "chosen": "14", "rejected": "5"},
    {"id": "empty", "question": "2 + 3?", "answer": "5", "chosen": " ", "rejected": "5"},
]


def stage_of(pairs: PairSource, **settings: Any) -> OfflineStage:
    return OfflineStage(pairs=pairs, **{"epochs": 1.0, "max_prompt_tokens": 40, "max_response_tokens": 48, **settings})


def written(folder: Path, rows: list[dict[str, Any]]) -> FilePairs:
    write_rows(folder / "pairs.jsonl", rows)
    return FilePairs(path="pairs.jsonl")


def test_a_files_pairs_are_the_prompt_and_both_turns(run: Any, tmp_path: Path) -> None:
    run.eval_prompts = [Prompt(Example("e", "7 + 7?", "14"), "", ())]
    stage = stage_of(written(tmp_path, ROWS))
    pairs = gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path)
    assert [pair.id for pair in pairs] == ["a", "b"]
    first = pairs[0]
    text = run.tokenizer.decode
    assert first.prompt_ids == run.builder.prompt(Example("a", "1 + 1?", "2")).token_ids
    assert (text(first.right_ids[:-1]), text(first.wrong_ids[:-1])) == ("It is 2.", "It is 3.")
    assert first.right_ids[-1] == first.wrong_ids[-1] == run.tokenizer.eos_token_id
    report = json.loads((tmp_path / "stage" / "pairs.json").read_text())
    assert report["kept"] == 2
    assert report["excluded"] == {
        "prompt longer than max_prompt_tokens 40": 1,
        "a trace longer than max_response_tokens 48": 1,
        "right and wrong trace are the same tokens": 1,
        "question also in data.eval": 1,
        "no text under one of question, chosen, rejected": 1,
    }
    assert any("held-out" in line or "data.eval" in line for line in run.said)


def test_gathered_pairs_are_not_gathered_again(run: Any, tmp_path: Path) -> None:
    stage = stage_of(written(tmp_path, ROWS[:2]))
    before = list(gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path))
    (tmp_path / "pairs.jsonl").unlink()
    assert list(gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path)) == before


def test_too_few_pairs_are_told_before_the_first_stage_and_leave_nothing(run: Any, tmp_path: Path) -> None:
    """What stayed would bind the folder to the recipe that is now to be corrected."""
    stage = stage_of(written(tmp_path, ROWS[:2]), batch_size=64)
    run.recipe = run.recipe.model_copy(update={"stages": [*run.recipe.stages[:2], stage]})
    run.folder = SimpleNamespace(stage=lambda index, name: tmp_path / f"{index}-{name}")
    with pytest.raises(RecipeError, match=r"stages.offline.batch_size: 64 pairs an update, but there are 2"):
        prepare_offline(run, {}, tmp_path)
    assert not (tmp_path / "2-offline").exists()


def test_no_pair_left_is_an_error_with_reasons(run: Any, tmp_path: Path) -> None:
    stage = stage_of(written(tmp_path, [ROWS[2], ROWS[4]]))
    with pytest.raises(RecipeError, match=r"no pair is left; left out: .*max_prompt_tokens 40.*same tokens"):
        gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path)
    assert not (tmp_path / "stage" / "pairs.jsonl").exists()


def test_a_cards_traces_are_judged_by_the_verifier(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Two of three problems have both kinds; the verifier's word counts, not the publisher's claim."""
    card = load_card("gsm8k-model-solutions").model_copy(update={"name": "tiny"})
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    said = {"q1": ("1", "2", "3", "1"), "q2": ("1", "1", "1", "1"), "q3": ("3", "3", "1", "2")}
    rows = [
        {
            "question": question,
            "ground_truth": "so\nA: 1",
            **{m: {"is_correct": False, "solution": f"so\nA: {said}"} for m, said in zip(models, answers, strict=True)},
        }
        for question, answers in said.items()
    ]
    write_rows(tmp_path / str(card.source.file), rows)
    monkeypatch.setattr("rlkd.trainer.pair_sources.load_card", lambda _: card)

    def verify(items: list[tuple[str, Any]]) -> list[Verdict]:
        return [Verdict.graded(1.0 if "boxed{1}" in text else 0.0) for text, _ in items]

    run.pool = SimpleNamespace(verify_batch=verify)
    stage = stage_of(CardPairs(name="tiny"), max_response_tokens=60)
    pairs = gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path)
    found = {p.question: tuple(run.tokenizer.decode(ids[:-1]) for ids in (p.right_ids, p.wrong_ids)) for p in pairs}
    answer = "so\nThe answer is \\boxed{{{}}}.".format
    assert found == {"q1": (answer(1), answer(2)), "q3": (answer(1), answer(3))}


def rollout(ids: tuple[int, ...], *, cut: bool = False) -> Rollout:
    return Rollout(ids, (0.0,) * len(ids), "length" if cut else "stop", "", 0, 0, 0)


def test_samples_pair_different_right_and_wrong_traces() -> None:
    """Repeated traces count once, a cut-off or unjudged one is neither, tokens stay as they were sampled."""
    group = RolloutGroup(
        Prompt(Example("p", "q", "1"), "", (1, 2)),
        (rollout((5,)), rollout((5,)), rollout((6,)), rollout((7,)), rollout((8,), cut=True), rollout((9,))),
    )
    verdicts = [Verdict.graded(score) for score in (1.0, 1.0, 0.0, 0.0, 0.0)] + [Verdict.abstain("timeout")]
    report, spec = PairReport(), SampledPairs(samples=6, pairs_per_problem=2)
    found = list(sampled_pairs._group_pairs(group, verdicts, spec, report))
    assert [(pair.prompt_ids, pair.right_ids, pair.wrong_ids) for pair in found] == [((1, 2), (5,), (6,))]
    assert report.traces == {"right": 2, "wrong": 2, "cut off": 1, "neither": 1}
    assert (report.generated, report.abstained) == (6, 1)
    only = [Verdict.graded(1.0)] * 6
    assert list(sampled_pairs._group_pairs(group, only, spec, report)) == []
    assert report.excluded == {"problem without a right and a wrong trace": 1}


def test_sampling_goes_on_at_the_part_where_it_was_killed(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Seven problems in parts of two: killed in the third part, the third and fourth alone are sampled again."""
    monkeypatch.setattr(sampled_pairs, "CHUNK", 2)
    asked: list[str] = []
    killed_at: list[str] = []

    def sample(_: Any, prompts: list[Prompt], seeds: list[int], *__: Any) -> Any:
        asked.extend(prompt.example.id for prompt in prompts)
        if killed_at and killed_at[0] in asked:
            raise KeyboardInterrupt
        groups = [
            RolloutGroup(prompt, (rollout((5, seed)), rollout((6, seed)), rollout((7, seed))))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return SimpleNamespace(groups=lambda: groups)

    def verify(groups: list[RolloutGroup]) -> list[Verdict]:
        run.abstained += len(groups)
        return [Verdict.graded(1.0), Verdict.graded(0.0), Verdict.abstain("timeout")] * len(groups)

    class Bar:
        def update(self, done: int, _: str) -> None:
            run.said.append(done)

    monkeypatch.setattr(sampled_pairs, "sample", sample)
    monkeypatch.setattr(sampled_pairs, "_engines", lambda run, *_: run)
    run.verify, run.rollouts, run.console.bar = verify, object(), lambda *_: nullcontext(Bar())
    run.train_prompts = [Prompt(Example(f"p{at}", f"{at}?", "1"), "", (1, at)) for at in range(7)]
    stage = stage_of(SampledPairs(samples=4))

    def gathered(place: Path) -> tuple[list[Any], Any, dict[str, int], int]:
        run.tokens, run.abstained = {"generated": 0}, 0
        pairs = list(gather_pairs(run, stage, place, models={}, root=tmp_path))
        return pairs, json.loads((place / "pairs.json").read_text()), run.tokens, run.abstained

    whole = gathered(tmp_path / "whole")
    assert whole[1:] == (
        {"kept": 7, "excluded": {}, "traces": {"right": 7, "wrong": 7, "neither": 7}, "generated": 42, "abstained": 7},
        {"generated": 42},
        7,
    )
    killed_at.append("p5")
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        gathered(tmp_path / "killed")
    assert asked == ["p0", "p1", "p2", "p3", "p4", "p5"]
    killed_at.clear()
    asked.clear()
    assert gathered(tmp_path / "killed") == whole
    assert asked == ["p4", "p5", "p6"]
    asked.clear()
    assert gathered(tmp_path / "killed") == whole  # killed in training: the file is there, and what it cost
    assert asked == []
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["pairs.json", "pairs.jsonl"]


def test_rows_of_a_pair_share_group_and_prompt(run: Any, tmp_path: Path) -> None:
    stage = stage_of(written(tmp_path, ROWS[:2]))
    pairs = gather_pairs(run, stage, tmp_path / "stage", models={}, root=tmp_path)
    rows = pair_rows(pairs[:], wrong=True)
    assert [(row.group, row.term, row.index) for row in rows] == [
        (0, "right", 0),
        (0, "wrong", 1),
        (1, "right", 2),
        (1, "wrong", 3),
    ]
    assert [row.completion_ids for row in rows[:2]] == [pairs[0].right_ids, pairs[0].wrong_ids]
    assert rows[0].prompt_ids == rows[1].prompt_ids == pairs[0].prompt_ids
    right = pair_rows(pairs[:], wrong=False)
    assert [(row.group, row.term, row.index, row.completion_ids) for row in right] == [
        (0, "right", 0, pairs[0].right_ids),
        (1, "right", 1, pairs[1].right_ids),
    ]


def test_an_epoch_takes_every_pair_once(run: Any, tmp_path: Path) -> None:
    rows = [{**ROWS[1], "id": str(number)} for number in range(12)]
    pairs = gather_pairs(run, stage_of(written(tmp_path, rows)), tmp_path / "s", models={}, root=tmp_path)
    assert isinstance(pairs, PairFile)
    steps = [prompts_of_step(pairs, seed=1, step=step, per_step=4) for step in range(3)]
    assert sorted(pair.id for step in steps for pair in step) == sorted(str(number) for number in range(12))


@pytest.mark.parametrize(("epochs", "pairs", "updates"), [(1.0, 64, 8), (2.0, 63, 15), (0.5, 64, 4), (1.0, 3, 1)])
def test_epochs_are_whole_batches(epochs: float, pairs: int, updates: int) -> None:
    stage = stage_of(FilePairs(path="x"), epochs=epochs, batch_size=8)
    assert count_updates(stage, pairs) == updates


def with_pairs(recipe: Recipe, pairs: PairSource) -> Recipe:
    stage = recipe.stages[2]
    return recipe.model_copy(update={"stages": [*recipe.stages[:2], stage.model_copy(update={"pairs": pairs})]})


def test_sources_are_looked_at_before_anything_starts(recipe: Recipe, tmp_path: Path) -> None:
    spec = written(tmp_path, ROWS)
    check_sources(with_pairs(recipe, spec), tmp_path)
    with pytest.raises(RecipeError, match=r"stages\.2\.pairs\.path: there is no file .*did you mean 'pairs.jsonl'"):
        check_sources(with_pairs(recipe, FilePairs(path="pair.jsonl")), tmp_path)
    write_rows(tmp_path / "sft.jsonl", [{"question": "q", "completion": "c"}])
    with pytest.raises(RecipeError, match=r"has no column chosen, rejected; `rlkd data pairs`"):
        check_sources(with_pairs(recipe, FilePairs(path="sft.jsonl")), tmp_path)
    with pytest.raises(RecipeError, match=r"card 'svamp' names no traces"):
        check_sources(with_pairs(recipe, CardPairs(name="svamp")), tmp_path)
    with pytest.raises(DataCardError, match="no data card 'gsm8k-model-solution'; did you mean"):
        check_sources(with_pairs(recipe, CardPairs(name="gsm8k-model-solution")), tmp_path)


def test_a_config_is_widened_and_the_weights_stay(tmp_path: Path) -> None:
    """REDI's base model: another window and rotary base, as transformers reads them back."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **small))
    model.save_pretrained(tmp_path / "base")
    changes = {"max_position_embeddings": 256, "rope_parameters": {"rope_theta": 300000.0}}
    spec = PretrainedModel(path=str(tmp_path / "base"), config=changes)
    folder = materialise(spec, tmp_path / "wide", where="policy", seed=0, texts=lambda: ())
    wide = AutoModelForCausalLM.from_pretrained(folder)
    assert context_length(folder) == 256
    assert wide.config.rope_parameters["rope_theta"] == 300000.0
    assert context_length(tmp_path / "base") == 64
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, wide.state_dict()[name]), name
    unread = PretrainedModel(path=str(tmp_path / "base"), config={"rope_theta": 300000.0})
    with pytest.raises(
        RecipeError, match=r"policy.config.rope_theta: .* no such key; write rope_parameters: \{rope_theta"
    ):
        materialise(unread, tmp_path / "other", where="policy", seed=0, texts=lambda: ())


def test_a_trace_called_wrong_is_no_solution(tmp_path: Path) -> None:
    """Fine-tuning on a card's traces takes the first that the publisher does not call wrong."""
    card = load_card("gsm8k-model-solutions")
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    claims = {"q1": (False, True, True, False), "q2": (False, False, False, False)}
    rows = [
        {
            "question": question,
            "ground_truth": "so\nA: 1",
            **{m: {"is_correct": c, "solution": f"{m}\nA: 1"} for m, c in zip(models, said, strict=True)},
        }
        for question, said in claims.items()
    ]
    write_rows(tmp_path / str(card.source.file), rows)
    loaded = load_sources([CardData(name=card.name)], where="data.train", root=tmp_path)
    assert [example.solution and example.solution.split()[0] for example in loaded.examples] == [
        "6b_verification",
        None,
    ]


def test_pairs_are_plain_data(run: Any, tmp_path: Path) -> None:
    pairs = gather_pairs(run, stage_of(written(tmp_path, ROWS[:1])), tmp_path / "s", models={}, root=tmp_path)
    line = json.loads((tmp_path / "s" / "pairs.jsonl").read_text())
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in line.items()} == dataclasses.asdict(pairs[0])


def test_too_few_pairs_for_the_stage_are_refused() -> None:
    stage = stage_of(FilePairs(path="x"), batch_size=16, optim={"lr": 1e-4, "warmup_steps": 3})
    check_size(stage, 48)
    with pytest.raises(RecipeError, match=r"batch_size: 16 pairs an update, but there are 15"):
        check_size(stage, 15)
    with pytest.raises(RecipeError, match=r"warmup_steps: 3 exceeds the 2 updates of 47 pairs"):
        check_size(stage, 47)
    assert count_updates(stage_of(FilePairs(path="x"), batch_size=1, epochs=0.29), 100) == 29
