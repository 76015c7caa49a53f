"""Parameters that arrive over ZeroMQ: a bound PULL socket, one thread, the newest state for who asks."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from insta_runtime.errors import UserError
from insta_runtime.types import HeadState
from telepresence.drivers import message

WIRE_LIMIT = 1 << 20
"""ZeroMQ itself disconnects a peer that sends more bytes than this in one frame."""

POLL_MS = 100
SAME_CLOCK_NS = 1_000_000_000
"""A capture time less than this before its arrival is taken to be on this machine's monotonic clock."""


@dataclass(frozen=True)
class Driven:
    """A state that a message asked for, and when it arrived (``now_ns`` clock).

    ``transferred`` says that it was somebody else's, and now is before the camera that the avatar was learned with.
    """

    state: HeadState
    seq: int
    arrived_ns: int
    transferred: bool = False


class ZeroMqDriver:
    """Binds a PULL socket and keeps the newest state that valid messages add up to.

    ``refused`` is called once for every message that is dropped, with one line that says why, ``accepted`` for
    every other one.  ``transfer`` makes the state to show from the one that messages add up to and the person whose
    it is.  The thread named "zmq" runs from `start` to `stop` and calls all three.
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
        transfer: Callable[[HeadState, str | None], HeadState] = lambda state, _person: state,
        allow_remote: bool = False,
    ) -> None:
        check_address(address, allow_remote)
        self.address = address
        self.received = 0
        self.malformed = 0
        self._basis = basis
        self._head = head_sha256
        self._state = HeadState.neutral(expressions)
        self._refused, self._accepted, self._transfer = refused, accepted, transfer
        self._newest: Driven | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and listen.  UserError if the address cannot be bound."""
        import zmq

        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, WIRE_LIMIT)
        try:
            socket.bind(self.address)
        except zmq.ZMQError as error:
            socket.close()
            raise UserError(
                f"cannot listen for parameters at {self.address}: {error}; choose another with --zmq"
            ) from None
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

        def serve() -> None:
            with socket:
                while not self._stop.is_set():
                    if socket.poll(POLL_MS):
                        self._take(socket.recv_multipart(zmq.NOBLOCK))

        self._thread = threading.Thread(target=serve, name="zmq", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and wait for the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def newest(self) -> Driven | None:
        """The state after the newest valid message, or None before the first."""
        return self._newest

    def age(self, now_ns: int) -> float | None:
        """Seconds since the newest valid message, or None before the first."""
        newest = self._newest
        return None if newest is None else (now_ns - newest.arrived_ns) / 1e9

    def follow(self, state: HeadState) -> None:
        """Let fields that no message has given yet start from ``state``: the tracker's, say."""
        if self._newest is None:
            self._state = state

    def _take(self, frames: list[bytes]) -> None:
        arrived = time.monotonic_ns()
        try:
            if len(frames) != 1:
                raise UserError(f"malformed message: {len(frames)} frames, one is expected")
            parameters = message.decode(frames[0])
            state = message.apply(parameters, self._state, self._basis, self._head)
        except UserError as error:
            self.malformed += 1
            self._refused(str(error))
            return
        local = 0 <= arrived - parameters.t_capture_ns < SAME_CLOCK_NS
        self._state = state.at(parameters.t_capture_ns if local else arrived)
        self.received += 1
        shown = self._transfer(self._state, parameters.person)
        self._newest = Driven(shown, parameters.seq, arrived, transferred=shown is not self._state)
        self._accepted()


def check_address(address: str, allow_remote: bool) -> None:
    """UserError unless ``address`` is ipc or TCP on the loopback interface, or ``allow_remote`` was given."""
    if re.fullmatch(r"ipc://.+", address):
        return
    tcp = re.fullmatch(r"tcp://(?:\[([0-9a-fA-F:]+)\]|([^/:\[\]]+)):(\d{1,5}|\*)", address)
    if tcp is None:
        raise UserError(f"{address!r} is not a ZeroMQ address; write tcp://127.0.0.1:5577 or ipc:///path")
    if allow_remote or not _remote(tcp[1] or tcp[2]):
        return
    raise UserError(f"{address} would let other machines move the face; bind to loopback, such as tcp://127.0.0.1:5577")


def _remote(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
