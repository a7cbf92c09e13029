"""OpenAI-compatible servers that a run asks: the client, and the one choice that it reads from a reply."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rlkd.errors import RlkdError
from rlkd.recipe.privileged import JudgeFeedback, ServerTeacher

if TYPE_CHECKING:
    from openai import OpenAI


class ReplyError(RlkdError):
    """A server's reply that answers nothing, whatever its status says."""


def open_client(spec: ServerTeacher | JudgeFeedback) -> OpenAI:
    """A client with the section's address, key, deadline and tries."""
    from openai import OpenAI

    return OpenAI(
        base_url=spec.url,
        api_key=os.environ.get(spec.api_key_env) or "none",  # a server without keys ignores it
        timeout=spec.timeout_s,
        max_retries=spec.tries - 1,
    )


def first_choice(body: str) -> dict[str, Any]:
    """The first of a reply's choices. Raises: ReplyError that shows what came instead."""
    try:
        reply = json.loads(body)
    except json.JSONDecodeError:
        reply = None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise ReplyError(f"the reply has no choices: {body[:200]!r}")
    return choices[0]
