"""Logging as text and as JSON, one object per line."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from telepresence.runtime.logs import WAITING, configure, settle


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("telepresence")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def test_each_line_is_an_object_with_stage_event_and_fields() -> None:
    stream = io.StringIO()
    configure(as_json=True, stream=stream)
    log = logging.getLogger("telepresence.somewhere")
    thread = threading.Thread(
        target=lambda: log.warning(
            "no %s\nin two lines", "face", extra={"event": "error", "fields": {"path": Path("a")}}
        ),
        name="track",
    )
    thread.start()
    thread.join()
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed", extra={"stage": "render"})
    log.debug("too detailed")
    logging.getLogger("another.library").info("not a warning")
    settle()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 2
    first, second = lines
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "stage": "track",
        "event": "error",
        "message": "no face in two lines",
        "fields": {"path": "a"},
    }
    assert (second["stage"], second["event"], second["level"]) == ("render", "message", "error")
    assert "ValueError: broken" in second["fields"]["traceback"]


def test_the_text_log_has_one_line_for_each_message() -> None:
    stream = io.StringIO()
    configure(as_json=False, stream=stream)
    logging.getLogger("telepresence").info("waiting -> calibrating", extra={"event": "state"})
    settle()
    assert stream.getvalue().endswith(" waiting -> calibrating\n")


def test_a_terminal_that_blocks_delays_no_thread() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    configure(as_json=False, stream=stream)
    log, text = logging.getLogger("telepresence"), "x" * 1000
    done = threading.Event()

    def say_much() -> None:
        for number in range(3 * WAITING):  # far more than a pipe holds
            log.info("%d %s", number, text)
        done.set()

    threading.Thread(target=say_much, daemon=True).start()
    assert done.wait(120.0)
    read = threading.Thread(target=lambda: b"".join(iter(lambda: os.read(reader, 1 << 16), b"")), daemon=True)
    read.start()  # the terminal reads again
    settle()
    log.info("the last word")
    settle()
    stream.close()
    read.join(10.0)
    assert not read.is_alive()
    os.close(reader)
