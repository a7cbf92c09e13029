"""Feedback by rule and by a judge on a server: what is said, what is never said, and servers that fail."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from served import serve

from reward.verdict import Verdict
from rlkd.errors import RolloutError
from rlkd.recipe.privileged import JudgeFeedback, RuleFeedback
from rlkd.records import Example
from rlkd.rollout.feedback import Attempt, JudgeCritic, RuleCritic

EXAMPLE = Example("e", "What is 6 times 7?", "42", solution="6*7=42", fields={"topic": "products"})


def _attempts(count: int) -> list[Attempt]:
    return [Attempt(EXAMPLE, f"try {at}", Verdict.wrong("41")) for at in range(count)]


def _answer(text: str | None) -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def _critic(url: str, **options: Any) -> JudgeCritic:
    return JudgeCritic(JudgeFeedback(url=url, model="m", tries=1, **options))


def test_the_rule_says_what_was_read_and_what_the_hint_allows() -> None:
    critic = RuleCritic(RuleFeedback(hint="Think of {topic}: {solution}, {answer}."))
    verdicts = [Verdict.wrong("41"), Verdict.wrong(reason="unparsed"), Verdict.right("42"), Verdict.abstain("timeout")]
    assert critic.comment([Attempt(EXAMPLE, "x", verdict) for verdict in verdicts]) == [
        "Your answer 41 is wrong. Think of products: 6*7=42, 42.",
        "No final answer could be read. Think of products: 6*7=42, 42.",
        "Your answer 42 is correct.",
        None,
    ]


def test_each_attempt_gets_the_comment_on_itself() -> None:
    """Requests run side by side; the first is answered last."""
    seen: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(body)
        task = body["messages"][1]["content"]
        time.sleep(0.2 if "try 0" in task else 0.0)
        return _answer(f" on {task[-5:]} ")

    with serve(reply) as url:
        assert _critic(url).comment(_attempts(4)) == [f"on try {at}" for at in range(4)]
        _critic(url, show_answer=False).comment(_attempts(1))
    shown, hidden = seen[0]["messages"][1]["content"], seen[-1]["messages"][1]["content"]
    assert "What is 6 times 7?" in shown and "Reference answer (never reveal it): 42" in shown
    assert "What is 6 times 7?" in hidden and "42" not in hidden
    assert seen[0]["max_tokens"] == 400


def test_a_few_failures_leave_gaps_and_too_many_stop_the_step() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        task = body["messages"][1]["content"]
        return (500, {"error": {"message": "overloaded"}}) if "try 1" in task else _answer("Look again.")

    with serve(reply) as url:
        said = _critic(url, max_failed=0.25).comment(_attempts(4))
        assert said == ["Look again.", None, "Look again.", "Look again."]
        with pytest.raises(RolloutError, match=r"failed in 1 of 4 requests.*overloaded") as caught:
            _critic(url, max_failed=0.2).comment(_attempts(4))
        assert url in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_answer(""), r"says nothing beside its thinking \(finish_reason 'stop'\).*max_tokens \(400\)"),
        (_answer(None), "says nothing"),
        (_answer("<think>The gold answer is 42, so the attempt"), "says nothing"),
        (_answer("<think>The gold answer is 42.</think>\n"), "says nothing"),
        ((200, {"choices": [{"index": 0, "message": None}]}), "says nothing"),
        ((200, {"error": "the model is loading"}), "no choices.*loading"),
        ((200, {"choices": []}), "no choices"),
        ((200, "<html>welcome</html>"), "no choices.*welcome"),
        ((200, "{broken"), "no choices.*broken"),
        ((200, "[1]"), "no choices"),
    ],
)
def test_an_answer_without_a_comment_is_a_failed_request(reply: tuple[int, dict[str, Any] | str], reason: str) -> None:
    answers = iter([_answer("Look again."), reply, reply])
    with serve(lambda _: next(answers)) as url:
        assert _critic(url, concurrency=1).comment(_attempts(2)) == ["Look again.", None]
        with pytest.raises(RolloutError, match=f"failed in 1 of 1.*{reason}"):
            _critic(url).comment(_attempts(1))


@pytest.mark.parametrize(
    "text",
    [
        "<think>The gold answer is 42.</think>\n\nLook again.",
        "The gold answer is 42.</think>Look again.",  # the template had opened it
        "[THINK]The gold answer is 42.[/THINK]Look again.",
    ],
)
def test_a_judges_thinking_is_not_passed_on(text: str) -> None:
    with serve(lambda _: _answer(text)) as url:
        assert _critic(url).comment(_attempts(1)) == ["Look again."]


def test_a_slow_judge_does_not_hold_the_step_up() -> None:
    done = threading.Event()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        done.wait(20)
        return _answer("too late")

    with serve(reply) as url:
        begun = time.monotonic()
        with pytest.raises(RolloutError, match=r"failed in 2 of 2.*timeout_s \(0\.2\) long enough"):
            _critic(url, timeout_s=0.2).comment(_attempts(2))
        assert time.monotonic() - begun < 10
        begun = time.monotonic()
        with pytest.raises(RolloutError, match="failed in 5 of 40"):
            _critic(url, timeout_s=0.2, concurrency=2, max_failed=0.1).comment(_attempts(40))
        assert time.monotonic() - begun < 2.5  # all of them would take 4 s
        done.set()


def test_a_judge_that_is_down_is_an_error_that_names_it() -> None:
    with pytest.raises(RolloutError, match=r"http://127\.0\.0\.1:9/v1 failed in 2 of 3.*Is the server up"):
        _critic("http://127.0.0.1:9/v1").comment(_attempts(3))
