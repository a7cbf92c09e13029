"""Traces from a served teacher, over real HTTP with failures. A real server: tests/engine/test_server.py."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.curate import build_step, curate, curated_rows
from rlkd.data.curate.generate import Completion, ServedSampler
from rlkd.data.curate.parts import _sampler
from rlkd.data.curate.spec import Server
from rlkd.data.rows import Row
from rlkd.errors import DataCardError, TeacherError

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


def test_a_rendered_prompt_gets_no_second_start_token() -> None:
    seen: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(body)
        return 200, completion("ok")

    with server(reply) as url:
        for tokenizer in ("some/tokenizer", None):
            _sampler(Server(base_url=url, model="m", tokenizer=tokenizer))(
                ["a"], max_tokens=[5], temperature=1.0, seed=0
            )
    assert [body.get("add_special_tokens") for body in seen] == [False, None]


@pytest.mark.parametrize("dies_at", [10, 200])
def test_a_teacher_that_dies_in_a_part_costs_one_slice_of_it(dies_at: int, tmp_path: Path) -> None:
    """As without the death, byte for byte; and what was begun with other settings is not gone on with."""

    class Teacher:
        asked = 0
        dies_at = 0

        def __call__(self, prompts: Sequence[str], *, temperature: float, seed: int, **_: Any) -> list[Completion]:
            made = []
            for at, prompt in enumerate(prompts):
                self.asked += 1
                if self.asked == self.dies_at:
                    raise TeacherError("gone")
                made.append(Completion(f"{prompt} {seed + at} {temperature}", 3, finished=True))
            return made

    rows: list[Row] = [{"question": f"q{at}", "answer": "1"} for at in range(250)]

    def run(teacher: Teacher, out: str, **more: Any) -> None:
        spec = {"step": "generate_traces", "model": "m", "max_tokens": 9, **more}
        curate(rows, [build_step(spec, sampler=teacher)], tmp_path / out)

    def files(out: str) -> dict[str, bytes]:
        paths = (tmp_path / out / "01-generate_traces").iterdir()
        return {path.name: path.read_bytes() for path in paths if path.name != "report.json"}

    whole, mortal = Teacher(), Teacher()
    run(whole, "whole")
    mortal.dies_at = dies_at
    with pytest.raises(TeacherError, match="gone"):
        run(mortal, "out")
    if dies_at > 64:
        with pytest.raises(DataCardError, match="other settings"):
            run(Teacher(), "out", temperature=0.9)
    mortal.asked = mortal.dies_at = 0
    run(mortal, "out")
    assert mortal.asked == 250 - 64 * (dies_at // 64)
    assert files("out") == files("whole")


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
