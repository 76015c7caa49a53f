"""The one error that a user or a peer can cause."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: a file, a device, an argument, a message.

    The text is one line that says what is wrong and what to do.  Commands print it without a traceback
    and exit with status 2; the daemon logs and counts it.  What only a bug can cause raises anything else.
    """
