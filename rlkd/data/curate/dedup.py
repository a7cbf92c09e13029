"""Exact and near duplicates: the first row stays, later ones name the row that they repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from rlkd.data.curate.step import STEPS, Decision, Step, check_fields
from rlkd.data.fields import lookup, text_of
from rlkd.data.rows import Row
from rlkd.data.text import figures, ngrams, text_key, words
from rlkd.errors import MissingExtraError


@STEPS.register("exact_dedup")
class ExactDedup(Step):
    """Drop a row whose field has the same normal form as that of an earlier row. 16 bytes and an id a kept row.

    A row without the field stays, here and in near_dedup.
    """

    kind: ClassVar[str] = "exact_dedup"
    field: str = "question"
    _seen: dict[bytes, Any] = PrivateAttr(default_factory=dict)

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> None:  # noqa: ARG002
        check_fields(self, rows(), self.field)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        if (key := self._key(row)) is None:
            return Decision(row)
        first = self._seen.setdefault(key, row["row"])
        return Decision(row) if first == row["row"] else Decision.drop("exact duplicate", of_row=first)

    def _key(self, row: Row) -> bytes | None:
        value = lookup(row, self.field, default=None)
        return None if value is None else text_key(text_of(value))

    def remember(self, kept: Sequence[Row]) -> None:
        for row in kept:
            if (key := self._key(row)) is not None:
                self._seen.setdefault(key, row["row"])

    def forget(self) -> None:
        self._seen.clear()


@STEPS.register("near_dedup")
class NearDedup(Step):
    """Drop a row whose word n-grams overlap with those of an earlier row: estimated Jaccard >= threshold.

    MinHash with ``permutations`` slots estimates a Jaccard index J with a standard error of at most
    sqrt(J (1 - J) / permutations): 0.025 at J = 0.8 and 256. Rows whose numbers or operators differ, or stand in
    another order, are other problems however alike their words are, and stay: two instances of one template.
    """

    kind: ClassVar[str] = "near_dedup"
    field: str = "question"
    threshold: float = Field(default=0.8, gt=0.0, lt=1.0)
    ngram: int = Field(default=3, ge=1)
    permutations: int = Field(default=256, ge=16)
    seed: int = 42
    _index: Any = PrivateAttr(default=None)

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> None:  # noqa: ARG002
        check_fields(self, rows(), self.field)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row, sketch) for row, sketch in zip(rows, self._sketches(rows), strict=True)]

    def remember(self, kept: Sequence[Row]) -> None:
        for row, sketch in zip(kept, self._sketches(kept), strict=True):
            if lookup(row, self.field, default=None) is not None:
                self._store().add(str(row["row"]), sketch)

    def forget(self) -> None:
        self._index = None

    def _decide(self, row: Row, sketch: Any) -> Decision:
        if lookup(row, self.field, default=None) is None:
            return Decision(row)
        matches = self._store().get_duplicates(sketch)
        if matches:
            first = min(map(int, matches))
            return Decision.drop("near duplicate", of_row=first, threshold=self.threshold)
        self._store().add(str(row["row"]), sketch)
        return Decision(row)

    def _sketches(self, rows: Sequence[Row]) -> list[Any]:
        shingles = [self._shingles(text_of(lookup(row, self.field, default=""))) for row in rows]
        return list(_rensa().RMinHash.from_token_sets(shingles, num_perm=self.permutations, seed=self.seed))

    def _shingles(self, text: str) -> list[str]:
        """Word n-grams, each with a hash of the text's figures: texts with other figures have none in common."""
        key = text_key(" ".join(figures(text))).hex()
        return [f"{gram} {key}" for gram in ngrams(words(text), self.ngram) or [""]]

    def _store(self) -> Any:
        if self._index is None:
            self._index = _rensa().RMinHashDeduplicator(
                threshold=self.threshold,
                num_perm=self.permutations,
                use_lsh=True,
                num_bands=lsh_bands(self.threshold, self.permutations),  # rensa's default misses most pairs near 0.9
                seed=self.seed,
            )
        return self._index


def lsh_bands(threshold: float, permutations: int, missed: float = 0.01) -> int:
    """The fewest bands that miss at most ``missed`` of the pairs at the threshold.

    A pair of Jaccard J shares a band of r slots with probability J^r, so b bands miss it with (1 - J^r)^b.
    """
    for slots in range(permutations, 0, -1):
        bands, rest = divmod(permutations, slots)
        if rest == 0 and (1.0 - threshold**slots) ** bands <= missed:
            return bands
    return permutations


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise MissingExtraError("near_dedup needs rensa: pip install 'rlkd[train]'") from error
    return rensa
