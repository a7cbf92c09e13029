"""Several verifiers as one: the outcome stays apart from shaping terms, and rows can name their verifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reward.protocol import Example, Verifier, rollout_reads
from reward.registry import Spec, load
from reward.verdict import Verdict
from rlkd.errors import VerifierError, did_you_mean


class Composition:
    """``score`` from the outcome alone; shaping terms beside it, so that filters and advantages can tell them apart.

        reward = score + sum_k weight_k * (score_k - 1)     for a penalty (length, repetition, leak)
        reward = score + sum_k weight_k * score_k           for a bonus (format)

    Args:
        outcome: one spec, or a list of ``{"verifier": spec, "weight": w}`` whose weighted mean is the score.
        shaping: a list of ``{"verifier": spec, "weight": w, "as": "penalty" | "bonus", "only_right": bool}``;
            ``only_right`` applies a term to fully right outcomes alone (pi-Distill's length penalty).

    An outcome that abstains makes the whole abstain. A shaping term that abstains contributes nothing and is named
    in ``detail``.
    """

    name = "compose"

    def __init__(
        self, *, outcome: Spec | Sequence[Mapping[str, Any]], shaping: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        parts = [{"verifier": outcome}] if isinstance(outcome, (str, Mapping)) else list(outcome)
        self._outcome = [_term(part, "outcome", {"verifier", "weight"}) for part in parts]
        self._shaping = [_term(part, "shaping", {"verifier", "weight", "as", "only_right"}) for part in shaping]
        if not self._outcome or sum(weight for _, weight, _ in self._outcome) <= 0:
            raise VerifierError("compose: outcome needs at least one verifier with a positive weight")
        names = [verifier.name for verifier, _, _ in self._shaping]
        if len(set(names)) != len(names):
            raise VerifierError(f"compose: a shaping verifier stands twice: {', '.join(names)}")
        self.reads = _reads(verifier for verifier, _, _ in [*self._outcome, *self._shaping])

    def verify(self, completion: str, example: Example) -> Verdict:
        verdicts = [(verifier.verify(completion, example), weight) for verifier, weight, _ in self._outcome]
        total = 0.0
        for verdict, weight in verdicts:
            if verdict.score is None:
                return verdict
            total += weight * verdict.score
        first = verdicts[0][0]
        score = total / sum(weight for _, weight in verdicts)
        judged = first if len(verdicts) == 1 else Verdict.graded(min(1.0, score), first.parsed)
        return self._shaped(judged, completion, example)

    def check_gold(self, example: Example) -> Verdict:
        for verifier, _, _ in self._outcome:
            verdict = verifier.check_gold(example)
            if verdict.score != 1.0:
                return verdict
        return Verdict.right()

    def _shaped(self, outcome: Verdict, completion: str, example: Example) -> Verdict:
        terms: dict[str, float] = {}
        missing: list[str] = []
        for verifier, weight, options in self._shaping:
            if options.get("only_right") and outcome.score != 1.0:
                terms[verifier.name] = 0.0
                continue
            verdict = verifier.verify(completion, example)
            if verdict.score is None:
                missing.append(f"{verifier.name} abstained: {verdict.detail}")
            else:
                terms[verifier.name] = weight * (verdict.score - (options.get("as", "penalty") == "penalty"))
        detail = "; ".join(filter(None, [outcome.detail, *missing]))
        return Verdict(outcome.score, outcome.parsed, outcome.reason, detail=detail, shaping=terms)


def _term(part: Mapping[str, Any], where: str, accepted: set[str]) -> tuple[Verifier, float, Mapping[str, Any]]:
    for key in part:
        if key not in accepted:
            raise VerifierError(f"compose.{where}: unknown key '{key}'{did_you_mean(key, accepted)}")
    if "verifier" not in part:
        raise VerifierError(f"compose.{where}: 'verifier' is missing in {dict(part)}")
    if part.get("as", "penalty") not in ("penalty", "bonus"):
        raise VerifierError(f"compose.{where}: as={part['as']!r}; accepted: penalty, bonus")
    return load(part["verifier"]), float(part.get("weight", 1.0)), part


def _reads(parts: Iterable[Verifier]) -> frozenset[str]:
    return frozenset().union(*map(rollout_reads, parts))


class Route:
    """Picks the verifier by a field of the example, for mixed datasets.

    Args:
        field: the example's key.
        routes: its values to specs.
        default: spec for any other value; without it such a row abstains as ``bad_gold``.
    """

    name = "route"

    def __init__(self, *, field: str, routes: Mapping[str, Spec], default: Spec | None = None) -> None:
        self._field = field
        self._routes = {value: load(spec) for value, spec in routes.items()}
        self._default = load(default) if default is not None else None
        self.reads = _reads(filter(None, [*self._routes.values(), self._default]))

    def verify(self, completion: str, example: Example) -> Verdict:
        verifier = self._pick(example)
        return verifier.verify(completion, example) if verifier else self._lost(example)

    def check_gold(self, example: Example) -> Verdict:
        verifier = self._pick(example)
        return verifier.check_gold(example) if verifier else self._lost(example)

    def _pick(self, example: Example) -> Verifier | None:
        return self._routes.get(str(example.get(self._field)), self._default)

    def _lost(self, example: Example) -> Verdict:
        return Verdict.abstain(
            "bad_gold", f"{self._field}={example.get(self._field)!r}; routes: {', '.join(self._routes)}"
        )
