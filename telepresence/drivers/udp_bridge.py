"""UDP bridges: receivers that convert the faces sent by other face tracking programs to head states."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from insta_runtime.errors import UserError
from telepresence.drivers import livelink, openseeface, vmc
from telepresence.drivers.arkit import ArkitFace, face_to_head_state
from telepresence.drivers.message_ordering import TimestampOrdering
from telepresence.drivers.receiver import FLOOR_NS, RATE, StateReceiver, StateTransfer
from telepresence.runtime.addresses import is_loopback, parse_ip, resolve, socket_address, with_brackets
from telepresence.runtime.clock import now_ns

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel

LARGEST: Final = 65_535
"""Maximum size of a UDP packet, in bytes."""
WAIT_S: Final = 0.1
"""Maximum time, in seconds, to wait for a packet before checking for a request to stop."""


class PacketReader(Protocol):
    """Parser of the packets of one protocol; ``left_out`` has a message for each invalid part of the last packet."""

    left_out: list[str]

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet``; None if it contains no face.  Raises UserError if it is malformed."""
        ...


BRIDGES: Final[dict[str, tuple[Callable[[], PacketReader], int, float]]] = {
    livelink.NAME: (livelink.LiveLinkReader, livelink.PORT, RATE),
    vmc.NAME: (vmc.VmcReader, vmc.PORT, vmc.RATE),
    openseeface.NAME: (openseeface.OpenSeeFaceReader, openseeface.PORT, RATE),
}
"""(Parser, default UDP port, maximum number of packets read per second) of each protocol, by driver name."""


class UdpBridge(StateReceiver):
    """UDP receiver of one of the protocols in `BRIDGES`.

    The subject is unknown: ``transfer`` receives the protocol's name as fingerprint, so that the states are mapped to
    the avatar like those of another subject.  While one machine sends, packets of others are dropped.
    """

    def __init__(
        self,
        name: str,
        where: str,
        head: HeadModel,
        *,
        on_refused: Callable[[str], None],
        on_accepted: Callable[[], None] = lambda: None,
        transfer: StateTransfer = lambda state, _fingerprint: state,
        only_from: str = "",
    ) -> None:
        """Prepare to receive at ``where`` (see `parse_endpoint`).

        ``only_from``: address of the only machine whose packets are accepted; empty: any machine.  Raises UserError if
        ``where`` is invalid, or reachable from other machines without ``only_from``.
        """
        make, port, rate = BRIDGES[name]
        super().__init__(name, on_refused=on_refused, on_accepted=on_accepted, transfer=transfer, rate=rate)
        check_endpoint(name, where, only_from)
        self.host, self.port = parse_endpoint(where, port)
        self.address = f"udp://{with_brackets(self.host)}:{self.port}"
        self._only_from = _sender(only_from) if only_from else ""
        self._head, self._make = head, make
        self._reader = make()
        self._sender: str | None = None
        self._ordering = TimestampOrdering()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Bind the socket and start receiving.  Raises UserError if the address is not available."""
        family, address = socket_address(self.host, self.port)
        try:
            self._socket = listening = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:  # a system without IPv6
            raise UserError(
                f"cannot receive {self.name} at {self.address}: {error.strerror}: use an IPv4 address"
            ) from None
        try:
            if family == socket.AF_INET6 and parse_ip(self.host) == parse_ip("::"):
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # all addresses: IPv4, too
            listening.bind(address)
        except OSError as error:
            listening.close()
            raise UserError(
                f"cannot receive {self.name} at {with_brackets(self.host)}:{self.port}: {error.strerror or error};"
                f" choose another address with --set drivers.{self.name}=HOST:PORT"
            ) from None
        self.port = listening.getsockname()[1]
        self.address = f"udp://{with_brackets(self.host)}:{self.port}"
        listening.settimeout(WAIT_S)
        super().start()

    def _round(self) -> None:
        assert self._socket is not None, "start() was not called"
        try:
            packet, sender = self._socket.recvfrom(LARGEST)
        except TimeoutError:
            return
        except OSError:  # an ICMP error of an earlier packet; ignored
            self.worker.stop.wait(WAIT_S)
            return
        self._handle(packet, _sender(str(sender[0])))

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _handle(self, packet: bytes, sender: str) -> None:
        arrived = now_ns()
        if self._only_from and sender != self._only_from:
            self._reject("foreign")
            return
        if not self._may_read(arrived):
            return
        if sender != self._sender:
            newest = self.newest()
            if newest is not None and arrived - newest.arrived_ns < FLOOR_NS:
                self._reject("busy")
                return
            self._sender, self._reader, self._ordering = sender, self._make(), TimestampOrdering()
        try:
            face = self._reader.read(packet)
        except UserError as error:
            self._reject("malformed", str(error))
            return
        self._note_left_out(self._reader.left_out)
        if face is None:
            self._reject("empty")
            return
        if face.sent_s is not None and self._ordering.classify(face.sent_s) == "late":
            self._reject("late")
            return
        self._accept(face_to_head_state(face, self._head).at(arrived), self.counts["accepted"], arrived, self.name)


def check_endpoint(name: str, where: str, only_from: str) -> None:
    """Check the endpoint ``where`` of the bridge ``name``.  Raises UserError if ``where`` or ``only_from`` is invalid,
    or if ``where`` is reachable from other machines without ``only_from``."""
    if only_from:
        _sender(only_from)
    if not where:
        return
    host, _ = parse_endpoint(where, BRIDGES[name][1])
    if not is_loopback(host) and not only_from:
        raise UserError(
            f"drivers.{name}={where} is reachable from other machines: name the one whose packets are accepted with"
            " --set drivers.only_from=ADDRESS, or use 127.0.0.1"
        )


def parse_endpoint(where: str, port: int) -> tuple[str, int]:
    """Parse ``on``, ``PORT``, ``HOST`` or ``HOST:PORT`` to (host, port); defaults are 127.0.0.1 and ``port``.

    Hosts are IP addresses, IPv6 with a port in brackets, or names of this machine.  The host that is returned is an IP
    address.  Raises UserError if the text is none of these.
    """
    if where == "on":
        return "127.0.0.1", port
    if re.fullmatch(r"\d{1,5}", where):
        host, number = "127.0.0.1", where
    elif (address := parse_ip(where)) is not None:
        return str(address), port
    else:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([\w.-]+))(?::(\d{1,5}))?", where)
        literal = found is not None and (found[1] is not None or re.fullmatch(r"[\d.]+", found[2]) is not None)
        if found is None or (literal and parse_ip(found[1] or found[2]) is None) or found[2] == "off":
            raise UserError(
                f"{where!r} is not an endpoint: write on, PORT or HOST:PORT, such as 127.0.0.1:{port} or [::1]:{port}"
            )
        host, number = found[1] or found[2], found[3] or str(port)
    if int(number) > 65_535:
        raise UserError(f"{where!r} has an invalid port: use 1 to 65535")
    return resolve(host)[0], int(number)


def _sender(text: str) -> str:
    """The address of a sender in its shortest form: IPv4 where it is written as IPv6, and without a zone.

    Raises UserError if it is no IP address.
    """
    if (address := parse_ip(text)) is None:
        raise UserError(f"{text!r} is not an IP address: write one such as 192.168.1.20")
    return str(address).partition("%")[0]
