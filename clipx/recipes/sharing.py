"""What runs that are made one after another in one process may share: a model, its data, what they gave.

Outside of ``with shared():`` nothing is kept, and ``kept`` only calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_LIMITS = {"model": 1, "source": 12, "classifier": 8, "selection": 24, "features": 24}
"""How many of each kind are kept, those used last; the runs of a sweep are ordered so that few do."""

_current: ContextVar[Shared | None] = ContextVar("shared", default=None)


class Shared:
    """Things by kind and by what they were made from."""

    def __init__(self) -> None:
        self._made: dict[str, OrderedDict[Any, tuple[Any, tuple[Any, ...]]]] = {
            kind: OrderedDict() for kind in _LIMITS
        }

    def get(self, kind: str, key: Any, parents: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What was made of this kind from this key and these very parents, or make it.

        What has a parent that is not kept itself, such as a tower that a method trained, is not kept either.
        """
        if not all(any(each is made for made in self._things()) for each in parents):
            return make()
        own = self._made[kind]
        full = (key, *map(id, parents))  # an id stands for its object for as long as the entry holds that
        if full in own:
            own.move_to_end(full)
            return own[full][0]
        made = make()
        own[full] = (made, parents)
        while len(own) > _LIMITS[kind]:
            self._forget(own.popitem(last=False)[1][0])
        return made

    def forget(self, thing: Any) -> None:
        """Let go of a thing and of all that was made from it."""
        for own in self._made.values():
            for full in [full for full, (made, _) in own.items() if made is thing]:
                del own[full]
        self._forget(thing)

    def models(self) -> list[Any]:
        """The models that are kept."""
        return [made for made, _ in self._made["model"].values()]

    def _things(self) -> Iterator[Any]:
        return (made for own in self._made.values() for made, _ in own.values())

    def _forget(self, parent: Any) -> None:
        for own in self._made.values():
            for full, (made, parents) in list(own.items()):
                if any(each is parent for each in parents) and full in own:
                    del own[full]
                    self._forget(made)


@contextmanager
def shared() -> Iterator[Shared]:
    """Within the block ``kept`` keeps, until the block ends."""
    mine = Shared()
    token = _current.set(mine)
    try:
        yield mine
    finally:
        _current.reset(token)


def sharing() -> bool:
    """Whether this run is one of many that share."""
    return _current.get() is not None


def kept(kind: str, key: Any, parents: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What ``make`` gives; within ``shared`` the same object again for the same key and parents.

    What is kept must not be changed by who uses it.

    Args:
        kind: model, source, classifier, selection or features.
        key: hashable; what it is made from, as far as that has a value.
        parents: the objects that it is made from; it is let go with them.
        make: makes it.
    """
    mine = _current.get()
    return make() if mine is None else mine.get(kind, key, parents, make)
