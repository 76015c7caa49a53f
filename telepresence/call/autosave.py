"""Keeping what was learned: when avatars are saved in a call, and what is said of that and of their learning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.runtime.policy import one_line

if TYPE_CHECKING:
    from telepresence.call.camera_session import Person
    from telepresence.call.subjects import Sitter

log = logging.getLogger("telepresence")


class Keeper:
    """Saves avatars; one that cannot be saved stays as it was saved last, and the call goes on.

    `keep` belongs to the training thread; `save` to it, too, and to whoever sees somebody off.

    Attributes:
        trouble: why an avatar could not be saved last; None if it could.
    """

    def __init__(self, note: Callable[[str, str | None], None]) -> None:
        """``note(where, text)`` hears what went wrong, and None once it works again."""
        self.trouble: str | None = None
        self._note = note

    def keep(self, person: Person) -> None:
        """Save now and then, without waiting for it, and tell what became of weights and files."""
        learner = person.learner
        if learner is None:
            return
        learner.autosave(time.monotonic())
        for event in learner.events():
            self._note("learning", event.text)
        while learner.changes:
            change = learner.changes.popleft()
            person.sitters.note("appearance", f"the {change} changed: earlier pictures fade")
        if learner.unsaved != self.trouble:
            self.trouble = learner.unsaved
            self._note("avatar", self.trouble)

    def save(self, sitter: Sitter) -> None:
        """Save the avatar now, and wait for it; where that fails the last one stays."""
        try:
            if sitter.learner is not None and sitter.learner.save():
                log.info("avatar saved: %s", sitter.path, extra={"event": "avatar_saved", "stage": "avatar"})
            self._note("avatar", None)
            self.trouble = None
        except Exception as error:  # a lost GPU raises anything; whoever else is there must be saved all the same
            text = str(error) if isinstance(error, UserError) else f"it cannot be saved: {one_line(error)}"
            self._note("avatar", text)
            self.trouble = text
