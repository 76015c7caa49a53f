"""Publisher of tracked head states: a bound ZeroMQ PUB socket that sends parameter messages."""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING, Any

from insta_runtime.errors import UserError
from telepresence.drivers import parameter_message, zeromq_address

if TYPE_CHECKING:
    import zmq

    from insta_runtime.head import HeadModel
    from insta_runtime.types import HeadState
    from telepresence.drivers.curve import CurveKeys

QUEUE = 4
"""Maximum number of messages queued per subscriber; older states are dropped."""


class StatePublisher:
    """Publishes head states at a ZeroMQ address; `send` never blocks, and slow subscribers miss states.

    Raises UserError if the address is invalid, or reachable from other machines without keys.

    Attributes:
        address: the address, with the port that was bound once `start` has returned.
        sent: number of states sent.
    """

    def __init__(self, address: str, head: HeadModel, keys: CurveKeys | None = None) -> None:
        zeromq_address.check_address(address, allow_remote=keys is not None)
        self.address = address
        self.sent = 0
        self._head, self._keys = head, keys
        self._sender = secrets.token_hex(4)
        self._socket: zmq.Socket[bytes] | None = None
        self._lock = threading.Lock()  # ZeroMQ sockets must not be used by two threads at a time
        self._release = contextlib.ExitStack()

    def start(self) -> None:
        """Bind the socket.  Raises UserError if that fails."""
        import zmq

        context: zmq.Context[Any] = zmq.Context.instance()
        if self._keys is not None:
            context = zmq.Context()
            self._release.callback(context.term)
            try:
                self._release.callback(self._keys.start_authenticator(context).stop)
            except UserError:
                self._release.close()
                raise
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, QUEUE)
        try:
            if self._keys is not None:
                self._keys.configure_server(socket)
            self.address = zeromq_address.bind(socket, self.address, self._release)
        except (zmq.ZMQError, UserError) as error:
            socket.close()
            self._release.close()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot publish states at {self.address}: {error}; choose another with --set drivers.publish"
            ) from None
        self._socket = socket

    def send(self, state: HeadState, fingerprint: str | None) -> None:
        """Send ``state`` of the subject with ``fingerprint`` (None: unknown); nothing is sent before `start`."""
        import zmq

        parameters = parameter_message.ParameterMessage(
            v=parameter_message.VERSION,
            seq=self.sent,
            t_capture_ns=max(0, state.t_capture_ns),
            head=self._head.sha256,
            basis=self._head.basis,
            person=fingerprint,
            sender=self._sender,
            **{name: array.tolist() for name, array in state.arrays().items()},
        )
        payload = parameter_message.encode(parameters)
        with self._lock:
            if self._socket is None:
                return
            with contextlib.suppress(zmq.Again):
                self._socket.send(payload, zmq.NOBLOCK)
            self.sent += 1

    def stop(self) -> None:
        """Close the socket; can be called twice."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
        self._release.close()
