"""What a program and its children send over the network, seen by strace: name look-ups and other machines.

Counted is every attempt, whether it succeeds or not, so a machine without a network shows the same as one with it.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

NAME_SERVICE_PORTS = (53, 853, 5353)
"""Ports of DNS, DNS over TLS, and multicast DNS."""
RESOLVERS = ("systemd.Resolve", "resolved")
"""Parts of the paths of Unix sockets at which names are looked up."""
CALLS = "connect,sendto,sendmsg,sendmmsg"
"""System calls with which a packet leaves, or a connection begins."""
COMPLETE_S = 60.0
"""Seconds to wait for the last line of a trace."""

_CALL = re.compile(r"^\d+ +(?:connect|sendto|sendmsg|sendmmsg)\(")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PATH = re.compile(r'sun_path=@?"([^"]*)"')


class NetworkTrace:
    """Trace of one command; put `prefix` before it and read `attempts` when it has ended."""

    def __init__(self, folder: Path) -> None:
        """Skips the test where strace is missing or must not trace."""
        if shutil.which("strace") is None:
            pytest.skip("needs strace: apt-get install strace")
        self._file = folder / "network.trace"
        # -D: the traced program keeps its process number and gets its signals itself.  -f: with all its children.
        self.prefix = ("strace", "-D", "-f", "-q", "-s", "0", "-e", f"trace={CALLS}", "-o", str(self._file))
        if subprocess.run([*self.prefix, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("needs permission to trace processes (ptrace)")

    def attempts(self) -> list[str]:
        """Lines of the trace that look a name up or reach for another machine."""
        end = time.monotonic() + COMPLETE_S
        while not self._is_complete():  # strace writes the end after the program has ended
            assert time.monotonic() < end, f"{self._file} has no end"
            time.sleep(0.05)
        return [line for line in self._lines() if _CALL.match(line) and _leaves(line, _own_addresses())]

    def _lines(self) -> list[str]:
        return self._file.read_text(encoding="utf-8", errors="replace").splitlines()

    def _is_complete(self) -> bool:
        started = {line.split(maxsplit=1)[0] for line in self._lines()}
        ended = {line.split(maxsplit=1)[0] for line in self._lines() if "+++ " in line}
        return bool(ended) and started == ended


def _leaves(line: str, own: set[str]) -> bool:
    port, address, path = _PORT.search(line), _ADDRESS.search(line), _PATH.search(line)
    if path is not None:
        return any(resolver in path[1] for resolver in RESOLVERS)
    if port is not None and int(port[1]) in NAME_SERVICE_PORTS:
        return True  # a resolver on this machine passes the question on
    if address is None:
        return False  # a socket whose address was seen when it was connected
    target = ipaddress.ip_address((address[1] or address[2]).partition("%")[0])
    mapped = getattr(target, "ipv4_mapped", None) or target
    return not (mapped.is_loopback or mapped.is_unspecified or str(mapped) in own)


def _own_addresses() -> set[str]:
    """Addresses of this machine: what is sent to them stays on it."""
    return {entry.address.partition("%")[0] for card in psutil.net_if_addrs().values() for entry in card}
