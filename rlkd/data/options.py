"""A number as a multiple-choice question: near misses as the other options, and nothing in the list that tells."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation, localcontext
from random import Random

LETTERS = "ABCDEFGHIJ"
_GAPS = (1, 1, 2, 3, 10)  # slips of a sum, in units of the answer's last place


def lettered(answer: str, *, count: int, seed: int) -> tuple[dict[str, str], str] | None:
    """Letter to number for ``count`` options, and the letter of ``answer``; None when it is no plain number.

    The options' differences are drawn first and the answer's place among them, by size and by letter, afterwards and
    uniformly: without the question every option is as likely as any other. The answer keeps its spelling, the
    others have as many decimals.

    Args:
        count: 2 to 10.
        seed: equal seeds give equal options.
    """
    try:
        number = Decimal(answer.strip())
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    draw = Random(seed)
    steps = [0]
    for _ in range(count - 1):
        steps.append(steps[-1] + draw.choice(_GAPS))
    right = draw.randrange(count)
    with localcontext() as context:
        context.prec = len(answer) + 20  # whole numbers of any length stay exact
        unit = Decimal(1).scaleb(min(0, int(number.as_tuple().exponent)))
        texts = [f"{number + (step - steps[right]) * unit:f}" for step in steps]
    texts[right] = answer.strip()
    places = list(range(count))
    draw.shuffle(places)
    options = {LETTERS[place]: texts[index] for place, index in enumerate(places)}
    return options, LETTERS[places.index(right)]
