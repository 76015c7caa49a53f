"""A Python client that drives the face of a running daemon over ZeroMQ.

from telepresence.client import ParameterClient

with ParameterClient("tcp://127.0.0.1:5577", head_sha256, "arkit52") as client:
    client.send(expression=weights)          # (52,) in [0, 1]; all else keeps its value
    client.send(expression=None)             # not known any more: as the tracker sees it
    client.send(state)                       # or a whole HeadState
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from insta_runtime.types import HeadState
from telepresence.drivers.parameter_message import FIELDS, VERSION, Basis, ParameterMessage, encode


class ParameterClient:
    """Sends head states to the daemon that binds ``address``.

    ``head_sha256`` is the hash of the head model that the parameters belong to (or its first 16 digits), as
    `/status` names it under ``head``; the daemon refuses those of another head.  ``person`` says whose face they are
    (`insta_runtime.head.fingerprint`): the daemon maps somebody else's on the person whom it shows; None
    lets it show them as they are.  ``keys`` is for a daemon with CURVE: the files of its public key and of this
    client's secret one (UserError if they are none).  Sending never blocks: while nobody listens, messages are dropped.
    """

    def __init__(
        self,
        address: str,
        head_sha256: str,
        basis: Basis,
        person: str | None = None,
        keys: tuple[Path, Path] | None = None,
    ) -> None:
        import zmq

        self.dropped = 0
        self._head, self._person = head_sha256, person
        self._basis = basis
        self._seq = 0
        self._sender = secrets.token_hex(4)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 200)
        # A queue of old expressions is worth nothing: keep a few and drop the rest.
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        if keys is not None:
            from telepresence.drivers.curve import configure_client

            configure_client(self._socket, *keys)
        self._socket.connect(address)

    def wait(self, timeout_s: float) -> bool:
        """Whether a daemon was reached within ``timeout_s`` seconds."""
        import zmq

        return bool(self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT))

    def send(
        self, state: HeadState | None = None, *, t_capture_ns: int | None = None, **fields: ArrayLike | None
    ) -> bool:
        """Send a whole state, or only the given fields of one (names and shapes as in `HeadState`).

        A field that is None is taken back: the daemon shows again what its tracker sees.  ``t_capture_ns`` is the
        monotonic time that the values belong to: now, unless given; the daemon drops what is older than what it has.
        Returns False if nobody took the message.  ValueError for a field that a head state does not have.
        """
        import zmq

        values: dict[str, Any] = dict(fields) if state is None else {**state.arrays(), **fields}
        if unknown := values.keys() - set(FIELDS):
            raise ValueError(f"a head state has no field {', '.join(sorted(unknown))}")
        stamp = time.monotonic_ns() if t_capture_ns is None else t_capture_ns
        parameters = ParameterMessage(
            v=VERSION,
            seq=self._seq,
            t_capture_ns=stamp,
            head=self._head,
            basis=self._basis,
            person=self._person,
            sender=self._sender,
            **{
                name: None if value is None else np.asarray(value, dtype=np.float32).tolist()
                for name, value in values.items()
            },
        )
        self._seq += 1
        try:
            self._socket.send(encode(parameters), zmq.NOBLOCK)
        except zmq.Again:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        """Close the socket, after at most 0.2 s for what is still on its way."""
        self._socket.close()

    def __enter__(self) -> ParameterClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
