"""What a separate teacher sends: hidden states, top-k, log-probs over HTTP; each against the plain computation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from served import serve

from rlkd.errors import TeacherError
from rlkd.learner.comparison import Measure
from rlkd.learner.teacher_views import read_heads, sent_comparisons
from rlkd.recipe.privileged import ServerTeacher
from rlkd.records import HiddenStates, TopK, TrainRow
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.teacher.server_teacher import ServerTeacherWorker
from rlkd.teacher.transformers_teacher import TransformersTeacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's model folder."""
    where = tmp_path_factory.mktemp("teacher")
    tiny.model(5).model.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def teacher(folder: Path) -> TransformersTeacher:
    settings = EngineSettings(str(folder), "float64", 256, 8, on_gpu=False)
    return TransformersTeacher(settings, temperature=1.0, tokens_per_batch=60)


def _pairs(rows: list[TrainRow]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(row.teacher_prompt_ids or (), row.completion_ids) for row in rows]


def _wanted(teacher: TransformersTeacher, policy: Any, row: TrainRow) -> tuple[torch.Tensor, torch.Tensor]:
    ls = tiny.plain_logits(policy, row.prompt_ids, row.completion_ids).log_softmax(-1)
    lt = tiny.plain_logits(teacher.policy, row.teacher_prompt_ids or (), row.completion_ids).log_softmax(-1)
    return ls, lt.detach()


def test_hidden_states_and_a_head_give_the_whole_vocabularys_divergence(
    teacher: TransformersTeacher, folder: Path
) -> None:
    policy, rows = tiny.model(0), tiny.two_context_rows(groups=4)
    sent = teacher.hidden(_pairs(rows))
    rows = [replace(row, teacher_view=HiddenStates(values)) for row, values in zip(rows, sent, strict=True)]
    heads = read_heads({"teacher": str(folder)}, "cpu", torch.float64)
    batch = tiny.batch_of(rows)
    found = policy(batch, against=sent_comparisons(batch, Measure("forward_kl"), heads)).divergence
    wanted = []
    for row in batch.rows:
        ls, lt = _wanted(teacher, policy, row)
        wanted.append((lt.exp() * (lt - ls)).sum(-1))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("k", [4, tiny.VOCAB - 1])
def test_top_k_bounds_the_whole_divergence_from_below_and_meets_it(teacher: TransformersTeacher, k: int) -> None:
    """Merging entries into one bucket can only lower a divergence; with all but one entry nothing is merged."""
    policy, rows = tiny.model(0), tiny.two_context_rows(groups=4)
    sent = teacher.top_k(_pairs(rows), k=k)
    for row, view in zip(rows, sent, strict=True):
        _, lt = _wanted(teacher, policy, row)
        values, ids = lt.topk(k)
        assert view.ids == tuple(map(tuple, ids.tolist()))
        torch.testing.assert_close(torch.tensor(view.logprobs), values.float(), rtol=1e-4, atol=1e-5)
    rows = [replace(row, teacher_view=view) for row, view in zip(rows, sent, strict=True)]
    batch = tiny.batch_of(rows)
    found = policy(batch, against=sent_comparisons(batch, Measure("forward_kl"), {})).divergence
    whole = []
    for row in batch.rows:
        ls, lt = _wanted(teacher, policy, row)
        whole.append((lt.exp() * (lt - ls)).sum(-1))
    exact = torch.cat(whole)
    if k == tiny.VOCAB - 1:
        torch.testing.assert_close(found, exact.to(found.dtype), rtol=1e-3, atol=1e-4)
    else:
        assert bool((found <= exact + 1e-5).all())
        assert bool((found < exact - 1e-3).any())


def test_boundary_mass_beside_log_probs(teacher: TransformersTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 61 rows over a tokenizer of 50: the padding starts nothing."""
    from rlkd.teacher import transformers_teacher

    starts = torch.tensor([token % 3 == 0 for token in range(50)])
    monkeypatch.setattr(transformers_teacher, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(transformers_teacher, "starts_pretoken", lambda _: starts.tolist())
    pairs = _pairs(tiny.two_context_rows(groups=4))
    for (prompt, done), (logprobs, mass) in zip(pairs, teacher.bounded(pairs), strict=True):
        plain = tiny.plain_logits(teacher.policy, prompt, done).softmax(-1).detach()
        chosen = plain.gather(1, torch.tensor(done)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(logprobs).exp().double(), chosen, rtol=1e-5, atol=1e-8)
        wanted = plain[:, :50][:, starts].sum(1)
        torch.testing.assert_close(torch.tensor(mass).exp().double(), wanted, rtol=1e-5, atol=1e-8)


def test_a_teacher_that_slept_scores_as_before(teacher: TransformersTeacher) -> None:
    sequences = [((1, 2, 3), (4, 5)), ((2, 3), (6,))]
    before = teacher.score(sequences)
    teacher.sleep()
    assert {parameter.device.type for parameter in teacher.policy.model.parameters()} == {"cpu"}
    teacher.wake()
    assert teacher.score(sequences) == before


def test_a_view_of_another_length_is_refused(teacher: TransformersTeacher) -> None:
    (row,) = tiny.two_context_rows(groups=1, size=1, seed=3)
    (values,) = teacher.hidden(_pairs([row]))
    longer = torch.cat([values, values[:1]])
    batch = tiny.batch_of([replace(row, teacher_view=HiddenStates(longer))])
    with pytest.raises(TeacherError, match=f"scored {len(longer)} tokens of a completion of {len(values)}"):
        sent_comparisons(batch, Measure("forward_kl"), {})
    fitting = tiny.batch_of([replace(row, teacher_view=HiddenStates(values, "other"))])
    with pytest.raises(TeacherError, match="no head"):
        sent_comparisons(fitting, Measure("forward_kl"), {})


# ---------------------------------------------------------------- a server that speaks vLLM's protocol


_BODIES: dict[str, dict[str, Any] | str] = {
    "html": "<html>welcome</html>",
    "broken": "{broken",
    "loading": {"error": "the model is loading"},
    "odd": {"choices": ["x"]},
}
_ENTRIES: dict[str, Callable[[str], Any]] = {
    "null": lambda token: {token: {"logprob": None, "rank": 1}},
    "nan": lambda token: {token: {"logprob": float("nan"), "rank": 1}},
    "number": lambda token: {token: -1.0},
    "list": lambda token: [token],
}


class _Server:
    """Answers /completions with a real model's prompt log-probs, in vLLM's shape; can be slow, broken or short."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.fault, self.calls = policy, "", 0

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any] | str]:
        self.calls += 1
        if self.fault in _BODIES:
            return 200, _BODIES[self.fault]
        if self.fault == "slow":
            time.sleep(1.0)
        if self.fault == "500" or (self.fault == "once" and self.calls == 1):
            return 500, {"error": {"message": "no"}}
        ids, count = body["prompt"], body["prompt_logprobs"]
        if self.fault == "plain":
            return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [_choice(None)]}
        lp = tiny.plain_logits(self.policy, ids[:1], ids[1:]).log_softmax(-1)
        entries: list[dict[str, Any] | None] = [None]
        for line, token in zip(lp, ids[1:], strict=True):
            order = line.argsort(descending=True).tolist()
            chosen = {*order[:count], token}
            entries.append(
                {
                    str(t): {"logprob": float(line[t]), "rank": order.index(t) + 1, "decoded_token": f"<{t}>"}
                    for t in chosen
                }
            )
        if self.fault in _ENTRIES:
            entries[-1] = _ENTRIES[self.fault](str(ids[-1]))
        if self.fault == "short":
            entries = entries[:-1]
        return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [_choice(entries)]}


def _choice(entries: Any) -> dict[str, Any]:
    return {"index": 0, "text": "", "finish_reason": "length", "logprobs": None, "prompt_logprobs": entries}


def _worker(url: str, **options: Any) -> ServerTeacherWorker:
    return ServerTeacherWorker(ServerTeacher(url=url, model="m", tokenizer="unused", **options))


def test_a_server_gives_the_same_numbers_as_the_model(teacher: TransformersTeacher) -> None:
    pairs = _pairs(tiny.two_context_rows(groups=2))
    with serve(_Server(teacher.policy).reply) as url:
        worker = _worker(url)
        for mine, theirs in zip(worker.score(pairs), teacher.score(pairs), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
        for served, local in zip(worker.top_k(pairs, k=5), teacher.top_k(pairs, k=5), strict=True):
            assert isinstance(served, TopK)
            assert served.ids == local.ids
            for a, b in zip(served.logprobs, local.logprobs, strict=True):
                assert a == pytest.approx(b, abs=1e-5)


def test_a_server_that_stumbles_once_is_asked_again(teacher: TransformersTeacher) -> None:
    server = _Server(teacher.policy)
    server.fault = "once"
    with serve(server.reply) as url:
        pairs = _pairs(tiny.two_context_rows(groups=1, size=1))
        assert _worker(url, tries=2).score(pairs)[0] == pytest.approx(teacher.score(pairs)[0], abs=1e-5)
        assert server.calls == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "answered 500"),
        ("slow", "cannot be used after 1 tries of 0.2 s"),
        ("plain", "returns no prompt_logprobs"),
        ("short", "scored .* tokens of"),
        ("html", "no choices.*welcome.*is it a vLLM server"),
        ("broken", "no choices.*broken"),
        ("loading", "no choices.*loading"),
        ("odd", "no choices"),
    ],
)
def test_a_server_that_fails_is_an_error_that_names_it(teacher: TransformersTeacher, fault: str, message: str) -> None:
    server = _Server(teacher.policy)
    server.fault = fault
    with serve(server.reply) as url, pytest.raises(TeacherError, match=message) as caught:
        _worker(url, tries=1, timeout_s=0.2 if fault == "slow" else 20).score(
            _pairs(tiny.two_context_rows(groups=1, size=1))
        )
    assert url in str(caught.value)


@pytest.mark.parametrize("fault", ["null", "nan", "number"])
def test_a_log_prob_that_is_no_number_is_refused(teacher: TransformersTeacher, fault: str) -> None:
    server, pairs = _Server(teacher.policy), _pairs(tiny.two_context_rows(groups=1, size=1))
    server.fault = fault
    with serve(server.reply) as url:
        with pytest.raises(TeacherError, match="no finite logprob"):
            _worker(url).score(pairs)
        with pytest.raises(TeacherError, match="no finite"):
            _worker(url).top_k(pairs, k=1)


def test_an_entry_that_is_no_entry_is_refused(teacher: TransformersTeacher) -> None:
    server = _Server(teacher.policy)
    server.fault = "list"
    with serve(server.reply) as url, pytest.raises(TeacherError, match=r"left token .* out"):
        _worker(url).score(_pairs(tiny.two_context_rows(groups=1, size=1)))


def test_a_server_spells_its_tokens(teacher: TransformersTeacher) -> None:
    pairs = _pairs(tiny.two_context_rows(groups=2))
    with serve(_Server(teacher.policy).reply) as url:
        spelled = _worker(url).spelled(pairs)
    assert spelled == [[f"<{token}>" for token in completion] for _, completion in pairs]


def test_a_server_that_is_down_is_an_error_that_names_it() -> None:
    with pytest.raises(TeacherError, match=r"http://127\.0\.0\.1:9/v1 cannot be used"):
        _worker("http://127.0.0.1:9/v1", tries=1).score([((1,), (2,))])
