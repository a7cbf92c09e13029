"""Names to things: one registry a kind, with near matches for a name that is unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from rlkd.errors import RlkdError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """An append-only mapping from a name to a function or class.

    >>> losses: Registry[object] = Registry("loss")
    >>> losses.register("k2")(abs) is losses["k2"]
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its target under ``name``. Raises: RlkdError when the name is taken."""

        def add(item: T) -> T:
            if name in self._items:
                raise RlkdError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            known = ", ".join(sorted(self._items))
            raise RlkdError(f"unknown {self.kind} '{name}'{did_you_mean(name, self._items)}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
