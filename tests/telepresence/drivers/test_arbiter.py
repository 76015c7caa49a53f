"""Selection of the driver by mode, message ages and tracked states."""

from __future__ import annotations

import pytest

from telepresence.drivers.arbiter import FRESH_S, ORDER, SEEN_S, DriverId, DriverMode, choose_driver


@pytest.mark.parametrize(
    ("drive", "ages", "seen_s", "driver"),
    [
        ("auto", {}, 0.0, "tracker"),
        ("auto", {}, None, "idle"),
        ("auto", {}, SEEN_S, "idle"),
        ("auto", {"zmq": None}, 0.0, "tracker"),
        ("auto", {"zmq": 0.0}, 0.0, "zmq"),
        ("auto", {"zmq": FRESH_S - 1e-6}, None, "zmq"),
        ("auto", {"zmq": FRESH_S}, 0.0, "tracker"),
        ("auto", {"zmq": FRESH_S, "vmc": 0.1}, 0.0, "vmc"),
        ("auto", {"take": 0.0, "livelink": 0.4}, 0.0, "livelink"),
        ("auto", dict.fromkeys(ORDER, 0.0), 0.0, ORDER[0]),
        ("tracker", {"zmq": 0.0}, 0.0, "tracker"),
        ("tracker", {"zmq": 0.0}, None, "idle"),
        ("zmq", {"zmq": None}, 0.0, "idle"),
        ("zmq", {"zmq": 1e6, "take": 0.0}, 0.0, "idle"),
        ("take", {"zmq": 0.0, "take": 0.0}, 0.0, "take"),
    ],
)
def test_the_driver_is_chosen_by_mode_and_age(
    drive: DriverMode, ages: dict[DriverId, float | None], seen_s: float | None, driver: str
) -> None:
    assert choose_driver(drive, ages, seen_s) == driver
