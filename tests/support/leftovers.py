"""Objects of this process that a test has left behind, and what refers to them."""

from __future__ import annotations

import gc
import types
import weakref
from collections import Counter


class Leftovers:
    """Objects of some types that were created after this one, such as those of ended sessions.

    Objects of earlier tests do not count: what they have left is no fault of the test that looks.
    """

    def __init__(self, *names: str) -> None:
        """``names``: names of the types, without their modules."""
        self._names = names
        gc.collect()
        self._before = {id(thing): weakref.ref(thing) for thing in self._alive()}

    def __len__(self) -> int:
        """Largest number of objects of one type."""
        return max(Counter(type(thing).__name__ for thing in self._new()).values(), default=0)

    def __str__(self) -> str:
        """The types and numbers of the objects, and what refers to the first one of each type."""
        new = self._new()
        parts = []
        for name, count in Counter(type(thing).__name__ for thing in new).items():
            first = next(thing for thing in new if type(thing).__name__ == name)
            holders = [_described(holder) for holder in gc.get_referrers(first) if holder is not new]
            parts.append(f"{count} {name}, referred to by {', '.join(sorted(set(holders))) or 'nothing'}")
        return "; ".join(parts)

    def _alive(self) -> list[object]:
        return [thing for thing in gc.get_objects() if type(thing).__name__ in self._names]

    def _new(self) -> list[object]:
        gc.collect()
        return [t for t in self._alive() if (ref := self._before.get(id(t))) is None or ref() is not t]


def _described(holder: object) -> str:
    if isinstance(holder, types.FrameType):
        return f"frame of {holder.f_code.co_qualname} (line {holder.f_lineno})"
    if isinstance(holder, types.MethodType | types.FunctionType):
        return holder.__qualname__
    if isinstance(holder, dict):
        return f"dict with {', '.join(str(key) for key in list(holder)[:6])}"
    return type(holder).__name__
