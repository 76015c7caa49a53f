"""Selection of the driver, the source of the head states that are rendered: one rule, without state.

In ``auto`` it is the first driver in `ORDER` that has a recent message; otherwise the tracker while it tracks a face;
otherwise ``idle``.  Any other driver mode names the only driver that may be selected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

DriverMode = Literal["auto", "tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take"]
"""Value of ``--drive``: automatic selection, or the only driver that may be selected."""
DriverId = Literal["tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take", "idle"]
"""Name of a driver (source of head states), or ``idle`` if no driver has a recent state."""

ORDER: Final[tuple[DriverId, ...]] = ("zmq", "subscription", "livelink", "vmc", "openseeface", "take")
"""Drivers by priority in ``auto``, highest first: programs that send messages, then a recorded take."""
FRESH_S: Final = 0.5
"""Age in seconds below which the newest message of a driver counts as recent."""
SEEN_S: Final = 1.0
"""Age in seconds below which the newest tracked state counts as recent; tolerates frames that are not tracked."""


def choose_driver(drive: DriverMode, ages: Mapping[DriverId, float | None], seen_s: float | None) -> DriverId:
    """Select the driver whose head states are rendered now; ``idle`` if none has a recent state.

    Args:
        drive: the driver mode.
        ages: seconds since the newest message of each driver in use (None: no message yet).
        seen_s: seconds since the newest tracked state (None: none yet).
    """
    if drive == "auto":
        for driver in ORDER:
            if is_fresh(ages.get(driver)):
                return driver
    elif drive != "tracker":
        return drive if is_fresh(ages.get(drive)) else "idle"
    return "tracker" if seen_s is not None and seen_s < SEEN_S else "idle"


def is_fresh(age_s: float | None) -> bool:
    """Whether a message of this age in seconds is recent (below `FRESH_S`); False for None."""
    return age_s is not None and age_s < FRESH_S
