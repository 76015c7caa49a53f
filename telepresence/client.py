"""Python client that drives the face of a running daemon over ZeroMQ.

```python
from telepresence.client import ParameterClient

with ParameterClient("tcp://127.0.0.1:5577", head_sha256, "arkit52") as client:
    client.send(expression=weights)          # (52,) in [0, 1]; all other fields keep their values
    client.send(expression=None)             # withdraw the field: the daemon uses the tracker's value again
    client.send(state)                       # or a whole HeadState
```
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
from telepresence.drivers.zeromq_address import connect


class ParameterClient:
    """ZeroMQ client that sends head states to the daemon at ``address``.

    Sending never blocks: messages are dropped while no daemon is connected, and counted in ``dropped``.  A context
    manager that closes the socket.

    Args:
        address: ZeroMQ address of the daemon (``run.zmq``), with an IPv4 address, an IPv6 address in brackets, or a
            name; UserError if it is none, or the name is not known.
        head_sha256: hash of the head model that the states belong to, or its first 16 digits, as ``head`` in `/status`;
            the daemon refuses states of another head model.
        basis: set of expressions, ``arkit52`` or ``flame``.
        person: fingerprint of the person whose face the states describe (`insta_runtime.head.fingerprint`); the daemon
            maps states of another person to the range of its subject.  None: states are used unchanged.
        keys: for a daemon with CURVE encryption, the files of its public key and of this client's secret key; UserError
            if they are not key files.
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
        # Old expressions are of no use to the daemon: queue only a few and drop the rest.
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        if keys is not None:
            from telepresence.drivers.curve import configure_client

            configure_client(self._socket, *keys)
        try:
            connect(self._socket, address)
        except BaseException:
            self._socket.close()
            raise

    def wait(self, timeout_s: float) -> bool:
        """Wait for a connection to a daemon; returns whether there is one within ``timeout_s`` seconds."""
        import zmq

        return bool(self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT))

    def send(
        self, state: HeadState | None = None, *, t_capture_ns: int | None = None, **fields: ArrayLike | None
    ) -> bool:
        """Send a whole state, or only the given fields of one (names and shapes as in `HeadState`).

        A field that is None is withdrawn: the daemon uses the value of its tracker again.  ``t_capture_ns`` is the
        monotonic time of the values in ns, by default now; the daemon drops values older than those it has.  Returns
        False if no daemon is connected.  ValueError for a field that a head state does not have.
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
        """Close the socket; messages that are queued have 0.2 s to be sent."""
        self._socket.close()

    def __enter__(self) -> ParameterClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
