"""Probe of the network ports that a call uses."""

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
"""Address at which the ports are tried."""
ANSWER_S: Final = 1.0
"""Seconds to wait for an answer at the page's port."""


def ports() -> Iterator[Finding]:
    """Whether the ports that a call uses by default are free."""
    from telepresence.config import RunConfig
    from telepresence.drivers.udp_bridge import BRIDGES
    from telepresence.streaming.settings import StreamSettings

    page = StreamSettings().port
    zmq = int(RunConfig().zmq.rpartition(":")[2])
    yield _port("page", page, socket.SOCK_STREAM, "choose another port: run --port N", _user_of(page))
    yield _port("parameters", zmq, socket.SOCK_STREAM, "choose another port: run --zmq tcp://127.0.0.1:N")
    for name, bridge in BRIDGES.items():
        yield _port(name, bridge[1], socket.SOCK_DGRAM, f"choose another port: run --driver {name}=N")


def _port(topic: str, port: int, kind: int, advice: str, user: str = "") -> Finding:
    topic, protocol = f"port: {topic}", "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections linger
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            reason = f"taken{user}" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
            return Finding(topic, f"{protocol} {port} is {reason}", ok=None, advice=advice)
    return Finding(topic, f"{protocol} {port} is free")


def _user_of(port: int) -> str:
    """Description of the telepresence call that answers at ``port``; empty without one."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/status", timeout=ANSWER_S) as answer:
            status = json.loads(answer.read(1 << 20))
        return f" by a telepresence call that is {status['state']}"
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return ""
