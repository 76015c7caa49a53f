"""What the program writes down of itself: lines for people, or one JSON object a line for programs.

Whoever logs may say more than words: ``extra={"event": "stage_failed", "stage": "track", "fields": {"failures": 2}}``.
Without it a record is of the event ``message`` in the stage that its thread is named after.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO


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


def configure(*, as_json: bool, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr): of other libraries warnings alone, of this program what happens in a call."""
    handler = logging.StreamHandler(stream or sys.stderr)
    plain = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonLines() if as_json else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("telepresence").setLevel(logging.INFO)


def _thread(record: logging.LogRecord) -> str:
    return "main" if record.threadName in (None, "MainThread") else str(record.threadName)
