"""What the models of a curation are asked: prompts in each model's own chat template, and when they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.chat import render
from rlkd.data.curate import parts as parts_module
from rlkd.data.curate.generate import Completion
from rlkd.data.curate.parts import build_steps
from rlkd.data.curate.perplexity import question_prompt
from rlkd.data.curate.score import TextScorer, load_scorer
from rlkd.data.curate.spec import CurationSpec, Server
from rlkd.data.models import named_scorer
from rlkd.data.rows import Row
from rlkd.errors import DataCardError
from rlkd.models.materialise import load_tokenizer, materialise
from rlkd.recipe.models import CharTokenizer, ScratchModel

ROW: Row = {"row": 1, "id": "1", "question": "2 + 3 = ?", "answer": "5", "traces": [{"text": "five", "model": "t"}]}
PROMPT = "{question}\nSay a number."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model folder with a chat template."""
    spec = ScratchModel(
        kind="scratch", hidden_size=16, layers=1, heads=2, context_length=128, tokenizer=CharTokenizer()
    )
    return materialise(spec, tmp_path_factory.mktemp("tiny") / "model", where="tiny", seed=0, texts=lambda: ())


def asked(tokenizer: Any) -> str:
    message = {"role": "user", "content": "2 + 3 = ?\nSay a number."}
    return render(tokenizer, [message], generate=True)


def test_scores_are_of_the_trace_after_the_models_own_prompt(tiny: Path) -> None:
    chat, plain = named_scorer(str(tiny), tiny.parent), load_scorer(tiny)
    tokenizer = load_tokenizer(tiny)
    for prompt in ("2 + 3 = ?\nSay a number.", "2 + 3 = ?\nSay a number.\n"):
        (found,), (expected,) = chat([(prompt, "five")]), plain([(asked(tokenizer), "five")])
        assert found == expected
    assert found != plain([("2 + 3 = ?\nSay a number.", "five")])[0]
    tokenizer.chat_template = None
    bare = TextScorer(plain.score_ids, tokenizer, chat=True)
    assert bare([("2", "five")]) == plain([("2", "five")])


class Recorder:
    """Remembers its prompts; every answer runs over."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompts: Sequence[str], **_: Any) -> list[Completion]:
        self.prompts += prompts
        return [Completion("12345678", 8, finished=False) for _ in prompts]


def test_servers_are_asked_in_the_template_of_their_tokenizer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: dict[str, Recorder] = {"teacher": Recorder(), "student": Recorder()}
    monkeypatch.setattr(parts_module, "_sampler", lambda server: servers[server.model])
    teacher = Server(base_url="http://none", model="teacher", tokenizer=str(tiny))
    steps: list[dict[str, Any]] = [
        {"step": "generate_traces", "max_tokens": 9, "model": "teacher"},
        {"step": "mixed_policy", "max_continuation": 9},
    ]
    spec = CurationSpec(
        source="x",
        prompt=PROMPT,
        student=str(tiny),
        server=teacher,
        student_server=Server(base_url="http://none", model="student"),
        steps=steps,
    )
    generate, mixed = build_steps(spec, tiny.parent)
    rendered = asked(load_tokenizer(tiny))
    generate.decide([ROW])
    assert servers["teacher"].prompts == [rendered]
    (decision,) = mixed.decide([ROW])
    assert decision.row is not None
    prefix = "12345678"[: decision.row["traces"][0]["student_chars"]]
    assert servers["student"].prompts == ["2 + 3 = ?\nSay a number.\n"], "no tokenizer: plain text"
    assert servers["teacher"].prompts[1:] == [rendered + prefix]
    assert generate.settings()["made_of"] == {"sampler": "teacher", "prompt": [PROMPT, str(tiny)]}


def test_a_model_is_looked_for_at_once_and_loaded_by_its_first_call(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    scorer = load_scorer(tiny)

    def load(name: str, _: Path) -> TextScorer:
        loaded.append(name)
        return scorer

    monkeypatch.setattr(parts_module, "_scorer", load)
    steps: list[dict[str, Any]] = [
        {"step": "perplexity_filter", "max_perplexity": 1e9},
        {"step": "provenance_select"},
    ]
    spec = CurationSpec(source="x", teacher=str(tiny), student=str(tiny), steps=steps)
    first, second = build_steps(spec, tiny.parent)
    assert loaded == []
    (decision,) = first.decide([ROW])
    assert loaded == [str(tiny)] and decision.row is not None
    assert decision.row["traces"][0]["perplexity"] == scorer([(question_prompt(ROW), "five")])[0].perplexity
    second.decide([ROW])
    assert len(loaded) == 2, "the teacher of both steps is one, and the student another"
    with pytest.raises(DataCardError, match=r"steps\.0: model 'nowhere/at/all'"):
        build_steps(spec.model_copy(update={"teacher": "nowhere/at/all"}), tiny.parent)
