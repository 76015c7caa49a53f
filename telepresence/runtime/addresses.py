"""Host names and IP addresses: loopback, literal addresses, resolution, and the network that counts as one client."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from insta_runtime.errors import UserError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
"""An IPv4 or IPv6 address."""
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Address of an IPv4 or IPv6 socket as the module ``socket`` takes it."""
PROBE_S: Final = 0.25
"""Maximum number of seconds in which an address of a name must accept a TCP connection to be preferred."""


def parse_ip(text: str) -> IpAddress | None:
    """The literal address ``text``, without brackets or port; None if it is none.

    An IPv4 address that is written as IPv6 (``::ffff:127.0.0.1``) is returned as IPv4.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address


def is_ip_address(text: str) -> bool:
    """Whether ``text`` is a literal IPv4 or IPv6 address, without brackets or port."""
    return parse_ip(text) is not None


def is_loopback(host: str) -> bool:
    """Whether ``host`` (``localhost`` or a literal address, without brackets) is the loopback interface."""
    address = parse_ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def without_brackets(host: str) -> str:
    """``host`` without the brackets that surround IPv6 addresses in URLs."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def with_brackets(host: str) -> str:
    """``host`` with the brackets that surround IPv6 addresses in URLs."""
    return f"[{host}]" if ":" in host else host


def resolve(host: str) -> list[str]:
    """Literal addresses of ``host``, a name or a literal address without brackets; IPv4 comes first.

    ``localhost`` is never looked up.  UserError if the name is not known.
    """
    if (address := parse_ip(host)) is not None:
        return [str(address)]
    if host.lower() == "localhost":
        return ["127.0.0.1", "::1"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"the host name {host!r} is not known: check its spelling, or give an IP address") from None
    literal = dict.fromkeys(str(parse_ip(str(entry[4][0])) or entry[4][0]) for entry in found)
    return sorted(literal, key=lambda text: ":" in text)


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, SocketAddress]:
    """Address family and socket address of the literal address ``host``; empty: all IPv4 addresses.

    The zone of a link-local address (``fe80::1%eth0``) is the network interface; on others it has no meaning.
    UserError if there is no such interface.
    """
    address = parse_ip(host)
    if not isinstance(address, ipaddress.IPv6Address):
        return socket.AF_INET, (host if address is None else str(address), port)
    text, _, zone = str(address).partition("%")
    scope = 0
    if zone and address.is_link_local:
        try:
            scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        except OSError:
            raise UserError(f"{host}: this machine has no network interface {zone!r}") from None
    return socket.AF_INET6, (text, port, 0, scope)


def reachable(host: str, port: int) -> str:
    """The literal address of ``host`` at which ``port`` accepts TCP connections; the first one if none does.

    Programs resolve a name to IPv4 or IPv6, and a server may listen at one of them only.  UserError if the name is not
    known.
    """
    addresses = resolve(host)
    for address in addresses if len(addresses) > 1 else ():
        try:
            with socket.create_connection((address, port), PROBE_S):
                return address
        except OSError:
            continue
    return addresses[0]


def client_network(address: str) -> str:
    """Network that counts as one client in rate limits: an IPv4 address, or the /64 network of an IPv6 address.

    Text that is no IP address is returned unchanged.
    """
    parsed = parse_ip(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return address if parsed is None else str(parsed)
