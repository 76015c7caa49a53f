"""Bridges: what trackers that people already own send over UDP, as states of our head."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from insta_runtime.errors import UserError
from telepresence.drivers import livelink, openseeface, vmc
from telepresence.drivers.arkit import Face, head_state
from telepresence.drivers.receiver import FLOOR_NS, RATE, Inlet, Transfer, now_ns

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel

LARGEST: Final = 65_535
WAIT_S: Final = 0.1
BACK_S: Final = 5.0
"""A sender's clock that falls back by less than this says that a packet is late; by more, that it began anew."""


class Reader(Protocol):
    """Makes faces of packets."""

    def read(self, packet: bytes) -> Face | None:
        """The face of ``packet``, or None if it shows none.  UserError if it is malformed."""
        ...


BRIDGES: Final[dict[str, tuple[Callable[[], Reader], int, float]]] = {
    livelink.NAME: (livelink.LiveLink, livelink.PORT, RATE),
    vmc.NAME: (vmc.Vmc, vmc.PORT, vmc.RATE),
    openseeface.NAME: (openseeface.OpenSeeFace, openseeface.PORT, RATE),
}
"""What reads the packets of each, the port that they usually come to, and how many a second are read."""


class Bridge(Inlet):
    """Listens to one of `BRIDGES`.

    Whose face it is nobody knows: all are handed to ``transfer`` as those of a stranger, whose neutral face
    becomes the avatar's.  The first machine that sends keeps the floor until it falls silent.
    """

    def __init__(
        self,
        name: str,
        where: str,
        head: HeadModel,
        *,
        refused: Callable[[str], None],
        accepted: Callable[[], None] = lambda: None,
        transfer: Transfer = lambda state, _person: state,
        only_from: str = "",
    ) -> None:
        """Listens at ``where`` (see `parse_endpoint`).

        ``only_from`` is the address of the one machine that is listened to; "" is any that can reach ``where``.
        UserError if it is no endpoint, or one beyond this machine without ``only_from``.
        """
        make, port, rate = BRIDGES[name]
        super().__init__(name, refused=refused, accepted=accepted, transfer=transfer, rate=rate)
        check_endpoint(name, where, only_from)
        self.host, self.port = parse_endpoint(where, port)
        self.address = f"udp://{self.host}:{self.port}"
        self._only_from = str(_address(only_from)) if only_from else ""
        self._head, self._make = head, make
        self._reader = make()
        self._sender: str | None = None
        self._sent_s: float | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Bind and listen.  UserError if the address cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._socket = listening = socket.socket(family, socket.SOCK_DGRAM)
        try:
            listening.bind((self.host, self.port))
        except OSError as error:
            listening.close()
            raise UserError(
                f"cannot listen to {self.name} at {self.host}:{self.port}: {error.strerror};"
                f" choose another with --set drivers.{self.name}=HOST:PORT"
            ) from None
        self.port = listening.getsockname()[1]
        self.address = f"udp://{self.host}:{self.port}"
        listening.settimeout(WAIT_S)
        super().start()

    def _round(self) -> None:
        assert self._socket is not None, "it was started"
        try:
            packet, sender = self._socket.recvfrom(LARGEST)
        except TimeoutError:
            return
        except OSError:  # what a socket reports of an earlier packet concerns nobody here
            self.worker.stop.wait(WAIT_S)
            return
        self._take(packet, str(sender[0]))

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _take(self, packet: bytes, sender: str) -> None:
        arrived = now_ns()
        if self._only_from and sender != self._only_from:
            self._drop("foreign")
            return
        if not self._may_read(arrived):
            return
        if sender != self._sender:
            newest = self.newest()
            if newest is not None and arrived - newest.arrived_ns < FLOOR_NS:
                self._drop("busy")
                return
            self._sender, self._reader, self._sent_s = sender, self._make(), None
        try:
            face = self._reader.read(packet)
        except UserError as error:
            self._drop("malformed", str(error))
            return
        if face is None:
            self._drop("empty")
            return
        if face.sent_s is not None:
            if self._sent_s is not None and 0.0 < self._sent_s - face.sent_s < BACK_S:
                self._drop("late")
                return
            self._sent_s = face.sent_s
        self._show(head_state(face, self._head).at(arrived), self.counts["taken"], arrived, self.name)


def check_endpoint(name: str, where: str, only_from: str) -> None:
    """UserError unless the bridge ``name`` may listen at ``where``, if anywhere, to the machine ``only_from``."""
    if only_from:
        _address(only_from)
    if not where:
        return
    host, _ = parse_endpoint(where, BRIDGES[name][1])
    if not ipaddress.ip_address(host).is_loopback and not only_from:
        raise UserError(
            f"drivers.{name}={where} would let other machines move the face: name the one that may with"
            " --set drivers.only_from=ADDRESS, or listen at 127.0.0.1"
        )


def parse_endpoint(where: str, port: int) -> tuple[str, int]:
    """Host and port of ``on``, ``PORT``, ``HOST`` or ``HOST:PORT``; what is missing is 127.0.0.1 and ``port``.

    UserError if it is none of these; hosts are literal addresses.
    """
    if where == "on":
        return "127.0.0.1", port
    if re.fullmatch(r"\d{1,5}", where):
        host, number = "127.0.0.1", where
    else:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([0-9.]+|localhost))(?::(\d{1,5}))?", where)
        if found is None:
            raise UserError(f"{where!r} is no place to listen: write on, PORT or HOST:PORT, such as 127.0.0.1:{port}")
        host, number = found[1] or found[2], found[3] or str(port)
    if int(number) > 65_535:
        raise UserError(f"{where!r} names no port: they go up to 65535")
    return str(_address("127.0.0.1" if host == "localhost" else host)), int(number)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise UserError(f"{text!r} is not the address of a machine, such as 192.168.1.20") from None
