"""Ports of this machine."""

from __future__ import annotations

import errno
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Final

from telepresence.checkup.finding import Finding

LOOPBACK: Final = "127.0.0.1"
ANSWER_S: Final = 1.0


def ports() -> Iterator[Finding]:
    """Whether what a call listens at by default is free."""
    from telepresence.config import RunConfig
    from telepresence.drivers.udp_bridge import BRIDGES
    from telepresence.streaming.settings import StreamSettings

    page = StreamSettings().port
    zmq = int(RunConfig().zmq.rpartition(":")[2])
    yield _port("page", page, socket.SOCK_STREAM, "run --port N takes another", _whose(page))
    yield _port("parameters", zmq, socket.SOCK_STREAM, "run --zmq tcp://127.0.0.1:N takes another")
    for name, bridge in BRIDGES.items():
        yield _port(name, bridge[1], socket.SOCK_DGRAM, f"run --driver {name}=N takes another")


def _port(topic: str, port: int, kind: int, advice: str, whose: str = "") -> Finding:
    topic, protocol = f"port: {topic}", "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does: closed calls linger
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            why = f"taken{whose}" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
            return Finding(topic, f"{protocol} {port} is {why}", ok=None, advice=advice)
    return Finding(topic, f"{protocol} {port} is free")


def _whose(port: int) -> str:
    """Who answers at the port of the page."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/status", timeout=ANSWER_S) as answer:
            status = json.loads(answer.read(1 << 20))
        return f" by a telepresence call that is {status['state']}"
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return ""
