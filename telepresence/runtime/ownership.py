"""Thread ownership of objects: each class declares the thread that uses it, checked while ``TELEPRESENCE_CHECKS=1``.

A thread gets a role by `enter_role`; `telepresence.runtime.worker.Worker` does so for the threads of the daemon.  A
class decorated with `owned_by` may be used only by threads of one role: every public method, every property and every
assignment to an attribute is checked, except methods marked with `any_thread` or `called_by`.

A thread without a role (the main thread, a test) may use an object before a thread with the role has done so, and after
that thread has ended or was abandoned: these are the phases in which the daemon is started and stopped.

Without the environment variable the decorators return what they are given, so that they cost nothing.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

CHECKS: Final = os.environ.get("TELEPRESENCE_CHECKS") == "1"
"""Whether thread ownership is checked in this process."""

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

violations: list[str] = []
"""Messages of all violations in this process; a worker that catches the AssertionError does not hide them."""


class ThreadRole:
    """Role of one running thread; `release` ends its ownership of objects, also if the thread hangs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = threading.current_thread()
        self._released = False

    def release(self) -> None:
        """Let threads without a role use the objects of this thread from now on."""
        self._released = True

    @property
    def active(self) -> bool:
        """Whether the thread runs and was not released."""
        return not self._released and self._thread.is_alive()


class _Local(threading.local):
    """State of the calling thread: its role, and the objects in whose ``any_thread`` method or constructor it is."""

    def __init__(self) -> None:
        self.role: ThreadRole | None = None
        self.exempt: list[int] = []


_local = _Local()


def enter_role(name: str) -> ThreadRole:
    """Give the calling thread the role ``name`` until it ends or enters another role."""
    _local.role = ThreadRole(name)
    return _local.role


def any_thread(method: F) -> F:
    """Mark a method of an owned class as safe to call from any thread; it may also assign attributes."""
    if CHECKS:
        method.__dict__["_callers"] = None
    return method


def called_by(role: str) -> Callable[[F], F]:
    """Mark a method that threads of ``role`` call, in place of the role that owns the class."""

    def mark(method: F) -> F:
        if CHECKS:
            method.__dict__["_callers"] = role
        return method

    return mark


def owned_by(role: str) -> Callable[[C], C]:
    """Class decorator: only threads of ``role`` may use instances, except methods marked otherwise.

    Subclasses inherit the checks of the decorated class; methods that they add are checked if they are decorated, too.
    """

    def decorate(cls: C) -> C:
        return _checked_class(cls, role) if CHECKS else cls

    return decorate


def _checked_class(cls: C, role: str) -> C:
    """Replace public methods, properties, ``__init__`` and ``__setattr__`` of ``cls`` by checked ones."""
    owner = cls.__name__
    for name, member in list(vars(cls).items()):
        if isinstance(member, property) and member.fget is not None and not name.startswith("_"):
            setattr(cls, name, property(_checked(member.fget, owner, role), member.fset, member.fdel, member.__doc__))
        elif callable(member) and hasattr(member, "__code__") and (not name.startswith("_") or name == "__call__"):
            setattr(cls, name, _checked(member, owner, role))
    if "__init__" in vars(cls):
        setattr(cls, "__init__", _exempt(vars(cls)["__init__"]))  # noqa: B010 - mypy forbids the assignment
    assign: Callable[..., None] = cls.__setattr__

    @functools.wraps(assign)
    def checked_assign(self: Any, name: str, value: object) -> None:
        if id(self) not in _local.exempt:
            _check(self, owner, f"{name} = ...", role)
        assign(self, name, value)

    setattr(cls, "__setattr__", checked_assign)  # noqa: B010 - likewise
    return cls


def _checked(method: F, owner: str, class_role: str) -> F:
    role: str | None = getattr(method, "_callers", class_role)
    if role is None:
        return _exempt(method)

    @functools.wraps(method)
    def checked(self: Any, *arguments: Any, **keywords: Any) -> Any:
        _check(self, owner, method.__name__, role)
        if role == class_role:
            return method(self, *arguments, **keywords)
        return exempted(self, *arguments, **keywords)

    exempted = _exempt(method)
    return checked  # type: ignore[return-value]


def _exempt(method: F) -> F:
    """Let ``method`` assign attributes of its object, whichever thread calls it."""

    @functools.wraps(method)
    def exempt(self: Any, *arguments: Any, **keywords: Any) -> Any:
        _local.exempt.append(id(self))
        try:
            return method(self, *arguments, **keywords)
        finally:
            _local.exempt.pop()

    return exempt  # type: ignore[return-value]


def _check(instance: Any, owner: str, member: str, role: str) -> None:
    """AssertionError unless the calling thread may use ``instance`` as ``role``; remembers the user for each role."""
    users: dict[str, ThreadRole | threading.Thread] = instance.__dict__.setdefault("_users", {})
    caller, user = _local.role, users.get(role)
    if caller is not None:
        if caller.name == role:
            users[role] = caller
            return
        name = caller.name
    else:
        thread = threading.current_thread()
        used = user.active if isinstance(user, ThreadRole) else user is not None and user.is_alive()
        if not used or user is thread:
            users[role] = thread
            return
        name = f"{thread.name} (no role)"
    text = f"{owner}.{member} belongs to thread {role!r} and was used by thread {name!r}"
    violations.append(text)
    raise AssertionError(text)
