"""Addresses of ZeroMQ sockets: validation, and binding and connecting over IPv4, over IPv6 and by host name.

libzmq binds no names, resolves them to one family only, and refuses IPv6 ("no such device") unless the socket option
IPV6 is set; so names are resolved here, and sockets get literal addresses.
"""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.runtime.addresses import is_loopback, parse_ip, reachable, resolve, with_brackets

if TYPE_CHECKING:
    import zmq

_TCP = re.compile(r"tcp://(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([^/:\[\]\s]+)):(\d{1,5}|\*)")


@dataclass(frozen=True)
class TcpAddress:
    """Host (a name, a literal address without brackets, or ``*``) and port (a number or ``*``) of a TCP address."""

    host: str
    port: str


def parse_address(address: str) -> TcpAddress | None:
    """Parse a ``tcp://`` address; None for an ``ipc://`` address.  Raises UserError if ``address`` is neither."""
    if re.fullmatch(r"ipc://.+", address):
        return None
    tcp = _TCP.fullmatch(address)
    bracketed = tcp is not None and tcp[1] is not None
    if tcp is None or (bracketed and parse_ip(tcp[1]) is None) or (tcp[3] != "*" and int(tcp[3]) > 65_535):
        raise UserError(
            f"{address!r} is not a ZeroMQ address: write tcp://127.0.0.1:5577, tcp://[::1]:5577 or ipc:///path"
        )
    return TcpAddress(tcp[1] or tcp[2], tcp[3])


def check_address(address: str, allow_remote: bool) -> None:
    """Raise UserError unless ``address`` is an ipc address, or a TCP address that is loopback or ``allow_remote``.

    Host names other than ``localhost`` count as remote, and must resolve.
    """
    tcp = parse_address(address)
    if tcp is None or is_loopback(tcp.host):
        return
    if not allow_remote:
        raise UserError(
            f"{address} is reachable from other machines: use a loopback address such as"
            " tcp://127.0.0.1:5577, or give CURVE keys (--set drivers.keys=DIR)"
        )
    if not _is_literal(tcp.host):
        resolve(tcp.host)


def check_target(address: str) -> None:
    """Raise UserError unless ``address`` names one host and one port, so that a socket can connect to it."""
    tcp = parse_address(address)
    if tcp is not None and (tcp.host == "*" or tcp.port == "*" or int(tcp.port) == 0):
        raise UserError(f"cannot connect to {address}: name one machine and one port, like tcp://127.0.0.1:5577")


def bind(socket_: zmq.Socket[bytes], address: str, release: ExitStack) -> str:
    """Bind ``socket_`` to ``address``; returns the bound address.  Hosts ``*`` and ``[::]``: all interfaces.

    ``release``, which the caller closes after the socket, removes the file of an ``ipc://`` address: libzmq leaves it.
    Raises ZMQError if the address cannot be bound, and UserError if a host name cannot be resolved.
    """
    import zmq

    tcp = parse_address(address)
    if tcp is not None:
        host = tcp.host if _is_literal(tcp.host) else resolve(tcp.host)[0]
        _open(socket_, host, tcp.port, "bind")
    else:
        socket_.bind(address)
    bound = socket_.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
    if tcp is None:
        path = Path(bound.removeprefix("ipc://"))
        with suppress(OSError):  # an abstract address has no file
            release.callback(_remove_file, path, _identity(path))
    return bound


def connect(socket_: zmq.Socket[bytes], address: str) -> None:
    """Connect ``socket_`` to ``address``; of the IP addresses of a host name, to one at which a program listens.

    Raises ZMQError, and UserError if ``address`` is no single host and port, or the name cannot be resolved.
    """
    tcp = parse_address(address)
    if tcp is None:
        socket_.connect(address)
        return
    check_target(address)
    host = tcp.host if _is_literal(tcp.host) else reachable(tcp.host, int(tcp.port))
    _open(socket_, host, tcp.port, "connect")


def _open(socket_: zmq.Socket[bytes], host: str, port: str, how: str) -> None:
    import zmq

    literal = parse_ip(host)
    host = host if literal is None else str(literal)
    # Only where it is needed: with the option, IPv4 needs a system that supports IPv6, too.
    socket_.setsockopt(zmq.IPV6, int(":" in host or (host == "*" and socket.has_ipv6)))
    getattr(socket_, how)(f"tcp://{with_brackets(host)}:{port}")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove_file(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket's file at ``path``, unless another program has bound the address since."""
    with suppress(OSError):
        if _identity(path) == identity:
            path.unlink()


def _is_literal(host: str) -> bool:
    """Whether libzmq takes ``host`` as it is: an address, all addresses, or a network interface."""
    return host == "*" or parse_ip(host) is not None or host in {name for _, name in socket.if_nameindex()}
