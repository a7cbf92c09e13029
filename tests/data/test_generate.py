"""Traces from a served teacher: over real HTTP with failures, and from a real vLLM server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.curate import build_step, curate, curated_rows
from rlkd.data.curate.generate import ServedSampler
from rlkd.data.rows import Row
from rlkd.errors import TeacherError

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@contextmanager
def server(reply: Reply) -> Iterator[str]:
    """A completions endpoint that answers what ``reply`` says to the request's body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = reply({**body, "key": self.headers.get("Authorization")})
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        http.shutdown()


def completion(text: str, finish: str = "stop", tokens: int = 3) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
    return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def test_order_limits_seeds_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers arrive in another order than they were asked for, and come back in the order of the prompts."""
    seen: list[dict[str, Any]] = []

    def slow_first(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(body)
        time.sleep(0.3 if body["prompt"] == "a" else 0.0)
        return 200, completion(body["prompt"].upper(), "length" if body["max_tokens"] == 1 else "stop")

    monkeypatch.setenv("TEACHER_KEY", "abc")
    with server(slow_first) as url:
        sampler = ServedSampler(url, "m", key_variable="TEACHER_KEY", concurrency=3)
        found = sampler(["a", "b", "c"], max_tokens=[5, 1, 5], temperature=0.6, seed=7)
    assert [(each.text, each.tokens, each.finished) for each in found] == [
        ("A", 3, True),
        ("B", 3, False),
        ("C", 3, True),
    ]
    asked = {body["prompt"]: body for body in seen}
    assert [asked[name]["seed"] for name in "abc"] == [7, 8, 9]
    assert {body["temperature"] for body in seen} == {0.6} and {body["key"] for body in seen} == {"Bearer abc"}


def test_a_busy_server_is_asked_again_and_a_broken_one_is_an_error() -> None:
    calls: list[int] = []

    def busy(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        calls.append(1)
        return (503, {"error": {"message": "busy"}}) if len(calls) < 3 else (200, completion("ok"))

    with server(busy) as url:
        (found,) = ServedSampler(url, "m")(["a"], max_tokens=[5], temperature=1.0, seed=0)
    assert found.text == "ok" and len(calls) == 3
    with server(lambda _: (400, {"error": {"message": "no such model"}})) as url:
        with pytest.raises(TeacherError, match="no such model"):
            ServedSampler(url, "m")(["a"], max_tokens=[5], temperature=1.0, seed=0)
        gone = url
    with pytest.raises(TeacherError, match="failed"):
        ServedSampler(gone, "m", retries=0)(["a"], max_tokens=[5], temperature=1.0, seed=0)


def test_a_teacher_that_dies_midway_costs_only_the_unfinished_part(tmp_path: Path) -> None:
    """The first part is kept; the second run asks for the second part only."""
    asked: list[str] = []
    alive = [True]

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not alive[0] and body["prompt"].startswith(("q3", "q4", "q5")):
            return 400, {"error": {"message": "out of memory"}}
        asked.append(body["prompt"].strip())
        return 200, completion(f"answer to {body['prompt'].strip()}")

    rows: list[Row] = [{"question": f"q{at}", "answer": "1"} for at in range(6)]
    with server(reply) as url:

        def run() -> None:
            sampler = ServedSampler(url, "m", retries=0)
            spec = {"step": "generate_traces", "model": "m", "max_tokens": 9, "count": 2, "temperature": 0.6}
            curate(rows, [build_step(spec, sampler=sampler)], tmp_path, part_rows=3)

        alive[0] = False
        with pytest.raises(TeacherError, match="out of memory"):
            run()
        assert sorted(asked) == sorted(["q0", "q1", "q2"] * 2)
        alive[0] = True
        run()
    assert sorted(asked) == sorted([f"q{at}" for at in range(6)] * 2)
    for at, row in enumerate(curated_rows(tmp_path)):
        assert [trace["text"] for trace in row["traces"]] == [f"answer to q{at}"] * 2
        assert row["traces"][0]["temperature"] == 0.6 and row["traces"][0]["model"] == "m"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of our own making, which says letters: a client sees nothing of special tokens and blanks."""
    import torch

    from rlkd.learner.policy import load_causal_lm
    from rlkd.models import load_tokenizer
    from rlkd.models.materialise import materialise
    from rlkd.recipe.schema import ScratchModel

    spec = ScratchModel(hidden_size=64, layers=2, heads=1)  # one head of 64: what the CPU attention kernel takes
    place = materialise(spec, tmp_path_factory.mktemp("served") / "model", where="test", seed=0, texts=lambda: ())
    tokenizer, network = load_tokenizer(place), load_causal_lm(place, dtype=torch.float32)
    unspoken = [
        token for token in range(len(tokenizer)) if not tokenizer.decode([token], skip_special_tokens=True).strip()
    ]
    network.get_output_embeddings().weight.data[unspoken] = 0.0  # a logit of 0, never the largest
    network.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def vllm_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server over it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--model": str(model), "--served-model-name": "teacher", "--port": str(port), "--host": "127.0.0.1",
        "--max-model-len": "256", "--dtype": "float32", "--max-num-seqs": "8",
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for pair in options.items() for word in pair]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                text = (folder / "log").read_text()[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, text
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.engine
def test_a_real_server(vllm_url: str) -> None:
    """Greedy samples repeat, limits cut and are reported, and a seed fixes a hot sample."""
    sampler = ServedSampler(vllm_url, "teacher", concurrency=4)
    prompts = ["What is 2 + 3?", "Name a colour."]
    cold = [sampler(prompts, max_tokens=[8, 16], temperature=0.0, seed=0) for _ in range(2)]
    assert cold[0] == cold[1]
    for each, limit in zip(cold[0], (8, 16), strict=True):
        assert each.finished or each.tokens == limit
        assert each.tokens <= limit
    hot = [sampler(prompts * 2, max_tokens=[16] * 4, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.engine
def test_a_real_server_teaches(vllm_url: str, model: Path) -> None:
    """Its prompt log-probs, sampled and top-k, are those of the learner's own pass over the same weights."""
    from rlkd.recipe.privileged import ServerTeacher
    from rlkd.rollout.vllm_engine import EngineSettings
    from rlkd.teacher.server_teacher import ServerTeacherWorker
    from rlkd.teacher.transformers_teacher import TransformersTeacher

    settings = EngineSettings(str(model), "float32", 256, 8, on_gpu=False)
    local = TransformersTeacher(settings, temperature=1.0, tokens_per_batch=256)
    served = ServerTeacherWorker(ServerTeacher(url=vllm_url, model="teacher", tokenizer=str(model)))
    pairs = [((5, 9, 30), (40, 41, 7)), ((8,), (12,)), ((60, 61), (3, 3, 3, 3, 50))]
    for mine, theirs in zip(served.score(pairs), local.score(pairs), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    for mine_k, theirs_k in zip(served.top_k(pairs, k=8), local.top_k(pairs, k=8), strict=True):
        assert mine_k.ids == theirs_k.ids
        for one, other in zip(mine_k.logprobs, theirs_k.logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    with pytest.raises(TeacherError, match=r"answered 40\d.*"):
        served.top_k(pairs, k=64)  # more than the server's --max-logprobs allows


@pytest.mark.engine
def test_a_real_server_comments(vllm_url: str) -> None:
    """What a random model says is noise, but it comes back as one text an attempt, cut where the recipe says."""
    from reward.verdict import Verdict
    from rlkd.recipe.privileged import JudgeFeedback
    from rlkd.records import Example
    from rlkd.rollout.feedback import Attempt, JudgeCritic

    example = Example("e", "What is 6 times 7?", "42")
    attempts = [Attempt(example, f"try {at}", Verdict.wrong("41")) for at in range(3)]
    spec = JudgeFeedback(url=vllm_url, model="teacher", instructions="Name the error.", max_tokens=12)
    said = JudgeCritic(spec).comment(attempts)
    assert len(said) == 3
    assert all(text and len(text) <= 12 for text in said)  # a token a character
