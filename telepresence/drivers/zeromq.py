"""Parameters that arrive over ZeroMQ: a bound PULL socket or a connected SUB socket, and the newest state."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.errors import UserError
from insta_runtime.types import Float32, HeadState
from telepresence.drivers import message
from telepresence.drivers.ordering import Ordering
from telepresence.drivers.receiver import FLOOR_NS, Inlet, Transfer, now_ns

if TYPE_CHECKING:
    import zmq

    from telepresence.drivers.curve import Keys

WIRE_LIMIT: Final = 1 << 20
"""ZeroMQ itself disconnects a peer that sends more bytes than this in one frame."""
QUEUE: Final = 64
"""Messages that wait at most, for each peer: half a second of them."""
POLL_MS: Final = 100


class ZeroMqDriver(Inlet):
    """Keeps the newest state that valid messages add up to.

    What no message has given yet, or what one has taken back, is as in the state that `follow` was told last, before
    that neutral.  Of several senders (field ``sender``) the first keeps the floor until it falls silent.
    """

    def __init__(
        self,
        address: str,
        *,
        basis: str,
        head_sha256: str,
        expressions: int,
        refused: Callable[[str], None],
        accepted: Callable[[], None] = lambda: None,
        transfer: Transfer = lambda state, _person: state,
        keys: Keys | None = None,
        subscribe: bool = False,
    ) -> None:
        """Listens at ``address`` (PULL), or to the publisher there (``subscribe``: SUB); with ``keys``, encrypted.

        UserError if it is no address, or one that other machines can reach without keys.
        """
        super().__init__("subscription" if subscribe else "zmq", refused=refused, accepted=accepted, transfer=transfer)
        check_address(address, allow_remote=keys is not None)
        self.address = address
        self._basis, self._head, self._expressions = basis, head_sha256, expressions
        self._keys, self._subscribe = keys, subscribe
        self._base = HeadState.neutral(expressions)
        self._given: dict[str, Float32] = {}
        self._sender: str | None = None
        self._ordering = Ordering()
        self._socket: zmq.Socket[bytes] | None = None
        self._release = contextlib.ExitStack()

    @property
    def received(self) -> int:
        """Messages that moved the face."""
        return self.counts["taken"]

    @property
    def malformed(self) -> int:
        """Messages that were wrong."""
        return self.counts["malformed"]

    def start(self) -> None:
        """Bind or connect, and listen.  UserError if that cannot be."""
        import zmq

        context = zmq.Context.instance() if self._keys is None else self._guarded()
        socket = context.socket(zmq.SUB if self._subscribe else zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, WIRE_LIMIT)
        socket.setsockopt(zmq.RCVHWM, QUEUE)
        try:
            if self._subscribe:
                if self._keys is not None:
                    self._keys.subscribe(socket)
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                socket.connect(self.address)
            else:
                if self._keys is not None:
                    self._keys.serve(socket)
                socket.bind(self.address)
                self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        except (zmq.ZMQError, UserError) as error:
            socket.close()
            self._release.close()
            if isinstance(error, UserError):
                raise
            option = "--set drivers.subscribe" if self._subscribe else "--zmq"
            raise UserError(
                f"cannot listen for parameters at {self.address}: {error}; choose another with {option}"
            ) from None
        self._socket = socket
        super().start()

    def follow(self, state: HeadState) -> None:
        """Let fields that no message gives be as in ``state``: the tracker's, say."""
        self._base = state

    def _guarded(self) -> zmq.Context[Any]:
        """A context of its own, at whose door the keys are asked for: there is one such door a context."""
        import zmq

        context: zmq.Context[Any] = zmq.Context()
        self._release.callback(context.term)
        if not self._subscribe and self._keys is not None:
            try:
                self._release.callback(self._keys.authenticate(context).stop)
            except UserError:
                self._release.close()
                raise
        return context

    def _round(self) -> None:
        import zmq

        assert self._socket is not None, "it was started"
        if self._socket.poll(POLL_MS):
            self._take(self._socket.recv_multipart(zmq.NOBLOCK))

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._release.close()

    def _take(self, frames: list[bytes]) -> None:
        arrived = now_ns()
        if not self._may_read(arrived):
            return
        try:
            if len(frames) != 1:
                raise UserError(f"malformed message: {len(frames)} frames, one is expected")
            parameters = message.decode(frames[0])
            found = message.changes(parameters, self._expressions, self._basis, self._head)
        except UserError as error:
            self._drop("malformed", str(error))
            return
        newest = self.newest()
        if parameters.sender != self._sender:
            if newest is not None and arrived - newest.arrived_ns < FLOOR_NS:
                self._drop("busy")
                return
            self._sender, self._ordering = parameters.sender, Ordering()
            self._given.clear()
        verdict = self._ordering.judge(parameters.seq, parameters.t_capture_ns, arrived)
        if verdict != "taken":
            self._drop(verdict)
            return
        for name, value in found.items():
            if value is None:
                self._given.pop(name, None)
            else:
                self._given[name] = value
        captured = self._ordering.captured_ns(parameters.t_capture_ns, arrived)
        state = message.merged(self._base, self._given).at(captured)
        placed = bool({"rotation", "translation"} & self._given.keys())
        self._show(state, parameters.seq, arrived, parameters.person, placed=placed)


def check_address(address: str, allow_remote: bool) -> None:
    """UserError unless ``address`` is ipc or TCP on the loopback interface, or ``allow_remote`` was given."""
    if re.fullmatch(r"ipc://.+", address):
        return
    tcp = re.fullmatch(r"tcp://(?:\[([0-9a-fA-F:]+)\]|([^/:\[\]]+)):(\d{1,5}|\*)", address)
    if tcp is None:
        raise UserError(f"{address!r} is not a ZeroMQ address; write tcp://127.0.0.1:5577 or ipc:///path")
    if allow_remote or not _remote(tcp[1] or tcp[2]):
        return
    raise UserError(
        f"{address} would let other machines move the face or watch it: take a loopback address such as"
        " tcp://127.0.0.1:5577, or give keys (--set drivers.keys=DIR)"
    )


def _remote(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
