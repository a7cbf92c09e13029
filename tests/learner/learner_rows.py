"""Random rows for tests of the learner."""

from __future__ import annotations

import random

from rlkd.records import TrainRow

VOCAB = 97


def random_rows(groups: int, size: int, *, seed: int = 0, longest: int = 30) -> list[TrainRow]:
    """Rows with prompts and completions of many lengths, one token included."""
    draw = random.Random(seed)
    rows: list[TrainRow] = []
    for group in range(groups):
        prompt = tuple(draw.randrange(VOCAB) for _ in range(draw.randrange(1, longest)))
        for member in range(size):
            length = 1 if member == 0 else draw.randrange(1, longest)
            completion = tuple(draw.randrange(VOCAB) for _ in range(length))
            logprobs = tuple(-draw.random() * 5 for _ in completion)
            rows.append(
                TrainRow(
                    group,
                    prompt,
                    completion,
                    logprobs,
                    advantage=draw.gauss(0, 1),
                    index=len(rows),
                    teacher_logprobs=tuple(-draw.random() * 5 for _ in completion),
                )
            )
    return rows
