"""Scores of a real 135M model: against plain transformers, as a perplexity filter, and for provenance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlkd.data.curate import build_step
from rlkd.data.curate.perplexity import probability_density, question_prompt
from rlkd.data.curate.provenance import CHOICES, trace_sentences
from rlkd.data.curate.score import TextScorer, TokenScores, span_probability
from rlkd.data.rows import Row
from rlkd.errors import TeacherError


def test_scores_equal_plain_transformers(smollm2: Path, scorer: TextScorer, gsm8k_traces: list[Row]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(smollm2), dtype=torch.float32).eval()
    row = gsm8k_traces[2]
    pairs = [(question_prompt(row), trace["text"]) for trace in row["traces"]] + [("", "Hello there."), ("Hi", "")]
    for (prompt, text), scores in zip(pairs, scorer(pairs), strict=True):
        before = scorer.tokenizer(prompt, add_special_tokens=False)["input_ids"] or [scorer.tokenizer.bos_token_id]
        own = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logprobs = model(torch.tensor([before + own])).logits[0].double().log_softmax(-1)
        expected = [logprobs[len(before) - 1 + at, token].item() for at, token in enumerate(own)]
        assert scores.logprobs == pytest.approx(expected, abs=1e-3)
        assert "".join(text[begin:end] for begin, end in scores.offsets) == text


def test_perplexity_filter_separates_text_from_noise(scorer: TextScorer, gsm8k_traces: list[Row]) -> None:
    row = dict(gsm8k_traces[0])
    noise = "zx qqv bnar uuiw plok mnbv trew asdq hjkl vbnm yuio"
    row["traces"] = [row["traces"][3], {"text": noise, "model": "noise"}, {"text": "", "model": "empty"}]
    step = {"step": "perplexity_filter", "max_perplexity": 50.0}
    (decision,) = build_step(step, scorer=scorer).decide([row])
    assert [(r.trace, r.reason) for r in decision.removals] == [(1, "perplexity too high"), (2, "empty trace")]
    assert decision.row is not None
    (kept,) = decision.row["traces"]
    (alone,) = scorer([(question_prompt(row), kept["text"])])
    alone_perplexity = math.exp(-sum(alone.logprobs) / len(alone.logprobs))
    assert kept["perplexity"] == pytest.approx(alone_perplexity, rel=1e-4)  # float32 scores, in batches of two sizes
    lenient = {**step, "max_by_model": {"noise": 1e9}}
    (decision,) = build_step(lenient, scorer=scorer).decide([row])
    assert [removal.trace for removal in decision.removals] == [2]


def test_span_probability_is_the_geometric_mean_and_counts_each_token_once() -> None:
    scores = TokenScores((math.log(0.5), math.log(0.25), math.log(0.1)), ((0, 2), (2, 5), (5, 6)))
    assert span_probability(scores, (0, 4)) == pytest.approx(math.sqrt(0.5 * 0.25))  # the second token crosses the end
    assert span_probability(scores, (4, 6)) == pytest.approx(0.1)
    assert span_probability(scores, (6, 9)) is None
    assert scores.perplexity == pytest.approx((0.5 * 0.25 * 0.1) ** (-1 / 3))
    assert math.isnan(TokenScores((), ()).mean_logprob)
    with pytest.raises(TeacherError):
        TokenScores((0.0,), ())


def test_density_integrates_to_one() -> None:
    density = probability_density([math.log(p) for p in (0.05, 0.5, 0.52, 1.0)], bins=10)
    assert sum(height / 10 for _, height in density) == pytest.approx(1.0)
    assert [height for _, height in density if height] == pytest.approx([2.5, 5.0, 2.5])
    assert probability_density([]) == []


def scored(text: str, probabilities: Sequence[float]) -> TokenScores:
    """One token a sentence, with the given probabilities."""
    from rlkd.data.text import sentences

    return TokenScores(tuple(math.log(p) for p in probabilities), tuple(sentences(text)))


def test_sentence_origins_by_hand() -> None:
    text = "One. Two. Three. Four."
    found = trace_sentences(text, scored(text, [0.9, 0.3, 0.55, 0.6]), scored(text, [0.5, 0.7, 0.5, 0.5]), beta=0.1)
    # gaps: 0.4, -0.4, 0.05, 0.1 (beta itself is not above beta; 0.6 - 0.5 is a hair below 0.1 in floating point)
    assert [each.origin for each in found] == ["teacher", "student", "common", "common"]


class Fixed:
    """A scorer by rule: the probability of a sentence that holds a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
        from rlkd.data.text import sentences

        out = []
        for _, text in pairs:
            spans = sentences(text)
            out.append(scored(text, [0.9 if self.word in text[begin:end] else 0.2 for begin, end in spans]))
        return out


T, S, C = "A teacher says. ", "A student says. ", "Nobody says. "
CANDIDATES = [C + S + C + C + C + C, T + T + C, T + T + T + S + S + S + C + C, C + C + S, T]


def test_selection_by_count_ratio_length_and_chance() -> None:
    """Teacher sentences: 0, 2, 3, 0, 1; of 6, 3, 8, 3, 1."""
    row: Row = {"row": 1, "id": "1", "question": "q", "traces": [{"text": text} for text in CANDIDATES]}

    def chosen(choose: str, seed: int = 0) -> int:
        step = {"step": "provenance_select", "choose": choose, "seed": seed}
        (decision,) = build_step(step, teacher=Fixed("teacher"), student=Fixed("student")).decide([row])
        assert decision.row is not None and len(decision.removals) == len(CANDIDATES) - 1
        return CANDIDATES.index(decision.row["traces"][0]["text"])

    assert chosen("count") == 2
    assert chosen("ratio") == 4
    assert chosen("longest") == 2
    # 116 characters were picked by count; the nearest other length is that of candidate 0
    lengths = [len(text) for text in CANDIDATES]
    assert chosen("length_matched") == min((0, 1, 3, 4), key=lambda at: abs(math.log(lengths[at] / lengths[2])))
    assert {chosen("random", seed) for seed in range(60)} == set(range(5))
    assert chosen("random", 3) == chosen("random", 3)
    assert set(CHOICES) == {"count", "ratio", "longest", "length_matched", "random"}


def test_selection_on_real_traces_with_a_real_model(scorer: TextScorer, gsm8k_traces: list[Row]) -> None:
    """Teacher: the model that sees the answer in its prompt. Student: the same model without it."""

    class Told:
        def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
            return scorer([(f"{prompt}{text}\nAgain:\n", text) for prompt, text in pairs])

    rows = gsm8k_traces[:3]
    step = build_step({"step": "provenance_select"}, teacher=Told(), student=scorer)
    for row, decision in zip(rows, step.decide(rows), strict=True):
        assert decision.row is not None
        (kept,) = decision.row["traces"]
        counts = kept["sentences"]
        assert counts["teacher"] > counts["student"], "who has seen a text finds it likelier"
        assert kept["text"] in [trace["text"] for trace in row["traces"]]
