"""Logging of the program: text lines for people, or one JSON object per line for programs.

A log call can give an event, a stage and fields for the JSON object:
``extra={"event": "stage_failed", "stage": "track", "fields": {"failures": 2}}``.
The default event is ``message``, the default stage the name of the thread.
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
"""Maximum number of records that wait to be written, for example while text is being selected in the terminal."""
SETTLE_S: Final = 1.0
"""Seconds after which `settle` gives up."""

_records: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
_writer: QueueListener | None = None


class JsonLines(logging.Formatter):
    """Formats a record as JSON: ``{"time", "level", "stage", "event", "message", "fields"}``; time in UTC, ISO 8601."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
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


class NonBlockingQueueHandler(QueueHandler):
    """Passes records to the writing thread, so that logging never waits for a terminal or a full pipe.

    Records beyond `WAITING` are lost.
    """

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """A copy of the record with the message already formatted."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record if there is room."""
        with suppress(queue.Full):
            self.queue.put_nowait(record)


def configure(*, as_json: bool, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (default: stderr): warnings of libraries, and messages of this program from level INFO."""
    global _records, _writer
    settle()
    if _writer is not None:
        with suppress(queue.Full):
            _writer.enqueue_sentinel()
    handler = logging.StreamHandler(stream or sys.stderr)
    plain = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonLines() if as_json else plain)
    _records = queue.Queue(WAITING)
    logging.basicConfig(level=logging.WARNING, handlers=[NonBlockingQueueHandler(_records)], force=True)
    logging.getLogger("telepresence").setLevel(logging.INFO)
    _writer = QueueListener(_records, handler)
    _writer.start()


@atexit.register
def settle() -> None:
    """Wait until all records are written, for at most `SETTLE_S`."""
    end = time.monotonic() + SETTLE_S
    while _records.unfinished_tasks and time.monotonic() < end:
        time.sleep(0.005)


def _thread(record: logging.LogRecord) -> str:
    return "main" if record.threadName in (None, "MainThread") else str(record.threadName)
