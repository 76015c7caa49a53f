"""Receiver of parameter messages over ZeroMQ: a bound PULL socket or a connected SUB socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.errors import UserError
from insta_runtime.types import Float32, HeadState
from telepresence.drivers import parameter_message, zeromq_address
from telepresence.drivers.message_ordering import MessageOrdering
from telepresence.drivers.receiver import FLOOR_NS, StateReceiver, StateTransfer
from telepresence.runtime.clock import now_ns

if TYPE_CHECKING:
    import zmq

    from telepresence.drivers.curve import CurveKeys

WIRE_LIMIT: Final = 1 << 20
"""Maximum size of a ZeroMQ frame in bytes; ZeroMQ disconnects a client that sends a larger one."""
QUEUE: Final = 64
"""Maximum number of messages queued per client, about half a second of them."""
POLL_MS: Final = 100
"""Maximum time, in ms, to wait for a message before checking for a request to stop."""


class ZeroMqDriver(StateReceiver):
    """ZeroMQ receiver that merges valid parameter messages into the newest head state.

    Fields that no message has set, or that were reset, have the value of the base state: neutral, or set by `set_base`.
    While one sender (field ``sender``) sends, messages of other senders are dropped.
    """

    def __init__(
        self,
        address: str,
        *,
        basis: str,
        head_sha256: str,
        expressions: int,
        on_refused: Callable[[str], None],
        on_accepted: Callable[[], None] = lambda: None,
        transfer: StateTransfer = lambda state, _fingerprint: state,
        keys: CurveKeys | None = None,
        subscribe: bool = False,
    ) -> None:
        """Prepare to bind ``address`` (PULL socket), or with ``subscribe`` to connect to it (SUB socket).

        ``basis``, ``head_sha256`` and ``expressions`` are basis, checksum and number of expressions of the head model.
        With ``keys`` the connection is encrypted and authenticated.  Raises UserError if the address is invalid, or
        reachable from other machines without keys.
        """
        super().__init__(
            "subscription" if subscribe else "zmq", on_refused=on_refused, on_accepted=on_accepted, transfer=transfer
        )
        zeromq_address.check_address(address, allow_remote=keys is not None)
        self.address = address
        self._basis, self._head, self._expressions = basis, head_sha256, expressions
        self._keys, self._subscribe = keys, subscribe
        self._base = HeadState.neutral(expressions)
        self._given: dict[str, Float32] = {}
        self._sender: str | None = None
        self._ordering = MessageOrdering()
        self._socket: zmq.Socket[bytes] | None = None
        self._release = contextlib.ExitStack()

    @property
    def received(self) -> int:
        """Number of messages that moved the face."""
        return self.counts["accepted"]

    def start(self) -> None:
        """Bind or connect the socket and start receiving.  Raises UserError if that fails."""
        import zmq

        context = zmq.Context.instance() if self._keys is None else self._authenticated_context()
        socket = context.socket(zmq.SUB if self._subscribe else zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, WIRE_LIMIT)
        socket.setsockopt(zmq.RCVHWM, QUEUE)
        try:
            if self._subscribe:
                if self._keys is not None:
                    self._keys.configure_subscriber(socket)
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                zeromq_address.connect(socket, self.address)
            else:
                if self._keys is not None:
                    self._keys.configure_server(socket)
                self.address = zeromq_address.bind(socket, self.address, self._release)
        except (zmq.ZMQError, UserError) as error:
            socket.close()
            self._release.close()
            if isinstance(error, UserError):
                raise
            option = "--set drivers.subscribe" if self._subscribe else "--zmq"
            raise UserError(
                f"cannot receive parameters at {self.address}: {error}; choose another with {option}"
            ) from None
        self._socket = socket
        super().start()

    def set_base(self, state: HeadState) -> None:
        """Set the base state, whose values apply to fields that no message has set; usually the tracked state."""
        self._base = state

    def _authenticated_context(self) -> zmq.Context[Any]:
        """Separate ZeroMQ context that checks the keys of clients: there is one authenticator per context."""
        import zmq

        context: zmq.Context[Any] = zmq.Context()
        self._release.callback(context.term)
        if not self._subscribe and self._keys is not None:
            try:
                self._release.callback(self._keys.start_authenticator(context).stop)
            except UserError:
                self._release.close()
                raise
        return context

    def _round(self) -> None:
        import zmq

        assert self._socket is not None, "start() was not called"
        if self._socket.poll(POLL_MS):
            self._handle(self._socket.recv_multipart(zmq.NOBLOCK))

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._release.close()

    def _handle(self, frames: list[bytes]) -> None:
        arrived = now_ns()
        if not self._may_read(arrived):
            return
        try:
            if len(frames) != 1:
                raise UserError(f"malformed message: {len(frames)} frames, expected one")
            parameters = parameter_message.decode(frames[0])
            found, left_out = parameter_message.validated_fields(parameters, self._expressions, self._basis, self._head)
        except UserError as error:
            self._reject("malformed", str(error))
            return
        newest = self.newest()
        if parameters.sender != self._sender:
            if newest is not None and arrived - newest.arrived_ns < FLOOR_NS:
                self._reject("busy")
                return
            self._sender, self._ordering = parameters.sender, MessageOrdering()
            self._given.clear()
        verdict = self._ordering.classify(parameters.seq, parameters.t_capture_ns, arrived)
        if verdict != "accepted":
            self._reject(verdict)
            return
        self._note_left_out(left_out)
        for name, value in found.items():
            if value is None:
                self._given.pop(name, None)
            else:
                self._given[name] = value
        captured = self._ordering.captured_ns(parameters.t_capture_ns, arrived)
        state = parameter_message.with_fields(self._base, self._given).at(captured)
        placed = bool({"rotation", "translation"} & self._given.keys())
        self._accept(state, parameters.seq, arrived, parameters.person, placed=placed)
