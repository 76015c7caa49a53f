"""Failure policy of each stage of the call, in one table (docs/supervision.md explains it).

A stage that raises is restarted after growing pauses; then the call goes on without it, or ends with the avatar saved
and exit status 1.  A thread that hangs cannot be ended from outside: it is abandoned, and the same choice is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Fallback(StrEnum):
    """What follows when the restarts of a stage are used up, or when it hangs."""

    AGAIN = "again"  # the stage is tried again without end, after the last pause
    WITHOUT = "without"  # the call goes on without the stage
    STOP = "stop"  # the call ends with the avatar saved and exit status 1


@dataclass(frozen=True)
class Policy:
    """Failure policy of one stage.

    Attributes:
        pauses: seconds before each restart after an error.
        failed: what follows when all restarts have failed.
        silent_s: seconds without a finished round after which the stage hangs.
        hung: what follows when the stage hangs.
    """

    pauses: tuple[float, ...]
    failed: Fallback
    silent_s: float
    hung: Fallback


SOON: Final = (0.25, 1.0, 3.0)
"""Pauses in seconds before the restarts of most stages: a transient fault is over by then."""

POLICIES: Final = {
    # Opened again until it works, so that a camera can be unplugged and plugged in again.
    "camera": Policy((2.0,), Fallback.AGAIN, 5.0, Fallback.AGAIN),
    "capture": Policy(SOON, Fallback.STOP, 60.0, Fallback.STOP),
    # Each restart makes a new tracker with the same calibration.
    "track": Policy(SOON, Fallback.STOP, 60.0, Fallback.STOP),
    "render": Policy(SOON, Fallback.STOP, 60.0, Fallback.STOP),
    # Rendering goes on with the last weights: a call can go on without learning.
    "train": Policy((*SOON, 30.0), Fallback.AGAIN, 120.0, Fallback.WITHOUT),
    "supervise": Policy(SOON, Fallback.STOP, 60.0, Fallback.STOP),
    # A new thread takes over, and viewers get a keyframe.
    "encode": Policy(SOON, Fallback.AGAIN, 5.0, Fallback.AGAIN),
    "network": Policy((), Fallback.STOP, 60.0, Fallback.STOP),
    # Each receiver of head states, under its own name; other drivers take over meanwhile.
    "receiver": Policy(SOON, Fallback.AGAIN, 60.0, Fallback.WITHOUT),
    # The WHIP connection to a media server, which may be away for any time.
    "publish": Policy((1.0, 2.0, 4.0, 8.0, 15.0, 30.0), Fallback.AGAIN, 8.0, Fallback.AGAIN),
}

HEALTHY_S: Final = 60.0
"""Seconds without a failure after which a stage has all its restarts again."""

JUMP_S: Final = 5.0
"""Gap in seconds between two rounds of supervision after which no stage counts as hanging: the machine slept."""

OLD_S: Final = 5.0
"""Age in seconds of a camera frame above which its capture time is wrong."""


class Condition(StrEnum):
    """Condition of a stage; the values are those of ``state`` in ``stages`` of `/status`."""

    RUNNING = "running"
    RESTARTING = "restarting"  # it has failed and waits for its restart
    HUNG = "hung"  # it hangs and was abandoned
    FAILED = "failed"  # its restarts are used up: it is tried rarely or not at all
    STOPPED = "stopped"


@dataclass(frozen=True)
class Health:
    """Health of a stage at one moment.

    Attributes:
        silent_s: seconds since the last finished round.
        restarts: number of restarts so far.
        error: message of the last error, in one line; None if there was none.
    """

    condition: Condition
    silent_s: float
    restarts: int
    error: str | None


LOST: Final = (
    *("illegal memory access", "unspecified launch failure", "launch timed out", "illegal instruction"),
    *("misaligned address", "hardware stack error", "invalid program counter", "device-side assert"),
    *("address space", "uncorrectable ECC", "unknown error", "context is destroyed", "no CUDA-capable device"),
)
"""Parts of CUDA error messages after which every further CUDA call of this process fails."""


def is_device_error(error: BaseException) -> bool:
    """Whether ``error`` means that the GPU is lost to this process.

    It is recognised by its message, because its class belongs to torch or CuPy, which may not be installed.
    """
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def one_line(error: BaseException) -> str:
    """The error as ``Class: message`` in one line; of a message with several lines the first."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
