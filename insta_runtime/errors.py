"""`UserError`: the exception for faults outside the program."""

from __future__ import annotations


class UserError(Exception):
    """Fault outside the program: in a file, a device, a command-line argument or a received message.

    The text is one line that says what is wrong and what to do.  Commands print it without a traceback and exit with
    status 2; the daemon logs and counts it.  Faults of the program itself raise other exceptions.
    """
