"""What the program writes down of itself: lines for people, or one JSON object a line for programs.

Whoever logs may say more than words: ``extra={"event": "stage_failed", "stage": "track", "fields": {"failures": 2}}``.
Without it a record is of the event ``message`` in the stage that its thread is named after.
"""

from __future__ import annotations

import atexit
import copy
import json
import logging
import queue
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Final, TextIO

WAITING: Final = 1000
"""Lines that wait at most for a terminal that takes none, because somebody selects text in it, say."""
SETTLE_S: Final = 1.0

_records: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
_writer: QueueListener | None = None


class JsonLines(logging.Formatter):
    """``{"time", "level", "stage", "event", "message", "fields"}``; time in UTC, ISO 8601."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": getattr(record, "stage", _thread(record)),
            "event": getattr(record, "event", "message"),
            "message": " ".join(record.getMessage().split()),
            "fields": fields,
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class Unhurried(QueueHandler):
    """Hands records to the thread that writes them; whoever logs never waits for a terminal, or for a full pipe.

    What comes when `WAITING` lines wait already is lost.
    """

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


def configure(*, as_json: bool, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr): of other libraries warnings alone, of this program what happens in a call."""
    global _records, _writer
    settle()
    if _writer is not None:
        with suppress(queue.Full):
            _writer.enqueue_sentinel()
    handler = logging.StreamHandler(stream or sys.stderr)
    plain = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonLines() if as_json else plain)
    _records = queue.Queue(WAITING)
    logging.basicConfig(level=logging.WARNING, handlers=[Unhurried(_records)], force=True)
    logging.getLogger("telepresence").setLevel(logging.INFO)
    _writer = QueueListener(_records, handler)
    _writer.start()


@atexit.register
def settle() -> None:
    """Write what was logged so far; gives up soon where nobody takes it."""
    end = time.monotonic() + SETTLE_S
    while _records.unfinished_tasks and time.monotonic() < end:
        time.sleep(0.005)


def _thread(record: logging.LogRecord) -> str:
    return "main" if record.threadName in (None, "MainThread") else str(record.threadName)
