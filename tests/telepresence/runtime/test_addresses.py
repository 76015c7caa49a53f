"""Addresses: loopback in every spelling, resolution of names, and the port at which a program listens."""

from __future__ import annotations

import socket

import pytest

from insta_runtime.errors import UserError
from telepresence.runtime.addresses import client_network, is_loopback, parse_ip, reachable, resolve, socket_address


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "0:0::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "*", "", "::ffff:0.0.0.0", "::ffff:192.0.2.1", "192.0.2.1", "fe80::1", "localhost.evil.example"],
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_names_are_resolved_with_ipv4_first() -> None:
    assert resolve("localhost") == ["127.0.0.1", "::1"]
    assert resolve("::ffff:192.0.2.1") == ["192.0.2.1"]
    assert resolve("0:0::1") == ["::1"]
    with pytest.raises(UserError, match=r"the host name 'no-such-name\.invalid' is not known"):
        resolve("no-such-name.invalid")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_name_leads_to_the_address_at_which_a_program_listens(family: int, address: str) -> None:
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert reachable("localhost", port) == address
    assert reachable("localhost", port) == "127.0.0.1"


def test_an_ipv4_client_counts_once_however_it_is_written() -> None:
    assert client_network("::ffff:192.0.2.7") == client_network("192.0.2.7") == "192.0.2.7"
    assert client_network("2001:db8::7") == client_network("2001:db8::8") == "2001:db8::/64"
    assert client_network("unknown") == "unknown"
    assert parse_ip("fe80::1%eth0") is not None


def test_the_zone_of_an_address_is_its_interface() -> None:
    number, name = socket.if_nameindex()[0]
    assert socket_address(f"fe80::1%{name}", 5) == (socket.AF_INET6, ("fe80::1", 5, 0, number))
    assert socket_address(f"fe80::1%{number}", 5) == (socket.AF_INET6, ("fe80::1", 5, 0, number))
    assert socket_address("::1%lo", 5) == (socket.AF_INET6, ("::1", 5, 0, 0))
    assert socket_address("::ffff:127.0.0.1", 5) == (socket.AF_INET, ("127.0.0.1", 5))
    assert socket_address("", 5) == (socket.AF_INET, ("", 5))
    with pytest.raises(UserError, match="no network interface 'nothing'"):
        socket_address("fe80::1%nothing", 5)
