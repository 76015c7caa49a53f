"""Who drives."""

from __future__ import annotations

import pytest

from telepresence.drivers.arbiter import FRESH_S, Drive, choose


@pytest.mark.parametrize(
    ("drive", "age", "driver"),
    [
        ("tracker", 0.0, "tracker"),
        ("zmq", None, "zmq"),
        ("zmq", 1e6, "zmq"),
        ("auto", None, "tracker"),
        ("auto", 0.0, "zmq"),
        ("auto", FRESH_S - 1e-6, "zmq"),
        ("auto", FRESH_S, "tracker"),
    ],
)
def test_choose(drive: Drive, age: float | None, driver: str) -> None:
    assert choose(drive, age) == driver
