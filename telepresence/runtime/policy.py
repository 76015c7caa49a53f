"""What happens when a part of the call fails: one table, which docs/supervision.md puts in words.

A stage is restarted after growing pauses; then the call goes on without it, or ends with the avatar saved and exit
status 1.  A thread that hangs cannot be ended from outside: it is left behind, and the same choice is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Then(StrEnum):
    """What is done when the restarts are used up, or a stage hangs."""

    AGAIN = "again"  # it is tried again and again, after the last pause
    WITHOUT = "without"  # the call goes on without it
    STOP = "stop"  # the call ends: avatar saved, exit status 1


@dataclass(frozen=True)
class Policy:
    """How one stage is treated.

    ``pauses``: seconds before each restart after an error.  ``failed``: what follows the last of them.
    ``silent_s``: it hangs if it has not finished a round for so long.  ``hung``: what follows that.
    """

    pauses: tuple[float, ...]
    failed: Then
    silent_s: float
    hung: Then


SOON: Final = (0.25, 1.0, 3.0)
"""A fault that passes has passed by then, and viewers have hardly noticed."""

POLICIES: Final = {
    # Opened anew until it works; a camera that is plugged in again goes on where it was.
    "camera": Policy((2.0,), Then.AGAIN, 5.0, Then.AGAIN),
    "capture": Policy(SOON, Then.STOP, 60.0, Then.STOP),
    # Each restart makes the tracker anew, with what it knew of the person.
    "track": Policy(SOON, Then.STOP, 60.0, Then.STOP),
    "render": Policy(SOON, Then.STOP, 60.0, Then.STOP),
    # The display goes on with the last weights: a call that no longer learns is still a call.
    "train": Policy((*SOON, 30.0), Then.AGAIN, 120.0, Then.WITHOUT),
    "supervise": Policy(SOON, Then.STOP, 60.0, Then.STOP),
    # A thread of its own takes over, and viewers get a keyframe.
    "encode": Policy(SOON, Then.AGAIN, 5.0, Then.AGAIN),
    "network": Policy((), Then.STOP, 60.0, Then.STOP),
    # What receives head states, or plays them, each by its own name; whoever else drives takes over meanwhile.
    "inlet": Policy(SOON, Then.AGAIN, 60.0, Then.WITHOUT),
    # The connection to a server that is published to: it may be away for as long as it likes.
    "publish": Policy((1.0, 2.0, 4.0, 8.0, 15.0, 30.0), Then.AGAIN, 8.0, Then.AGAIN),
}

HEALTHY_S: Final = 60.0
"""A stage that ran this long since its last failure starts over with all its restarts."""

JUMP_S: Final = 5.0
"""Nothing was watched for so long: the machine slept or stood still, and no stage is to be blamed for its silence."""

OLD_S: Final = 5.0
"""A picture older than this, or from the future, has a wrong time stamp."""


class Condition(StrEnum):
    """How a stage is; the values are what `/status` says."""

    RUNNING = "running"
    RESTARTING = "restarting"  # it failed, and waits for its next attempt
    HUNG = "hung"  # it was left behind
    FAILED = "failed"  # its restarts are used up: it is tried seldom, or not at all
    STOPPED = "stopped"


@dataclass(frozen=True)
class Health:
    """A stage at one moment: seconds since its last sign of life, restarts so far, its last error in one line."""

    condition: Condition
    silent_s: float
    restarts: int
    error: str | None


LOST: Final = (
    *("illegal memory access", "unspecified launch failure", "launch timed out", "illegal instruction"),
    *("misaligned address", "hardware stack error", "invalid program counter", "device-side assert"),
    *("address space", "uncorrectable ECC", "unknown error", "context is destroyed", "no CUDA-capable device"),
)
"""What CUDA's driver says when all that was on the GPU is gone, and every further call of this process fails."""


def is_device_error(error: BaseException) -> bool:
    """Whether the GPU is lost to this process.  By its words, as what raises it (torch, CuPy) may not be there."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def one_line(error: BaseException) -> str:
    """``Kind: message`` without line breaks; the first line of what torch tells in ten."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
