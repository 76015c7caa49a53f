"""STUN and TURN servers for ICE, with time-limited TURN credentials.

TURN credentials follow coturn's ``use-auth-secret``: the user name is the time at which they expire, the password an
HMAC-SHA1 of it under a secret shared by the daemon and the TURN server (draft-uberti-behave-turn-rest-00, section 2.2).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from telepresence.streaming.rtc.settings import IceSettings

if TYPE_CHECKING:
    from aiortc import RTCConfiguration

USER: Final = "telepresence"
"""Part of the TURN user name after the time of expiry."""


@dataclass(frozen=True)
class IceServer:
    """URL of a STUN or TURN server; ``username`` and ``credential`` are given for TURN only."""

    url: str
    username: str | None = None
    credential: str | None = None

    def as_json(self) -> dict[str, str]:
        """Entry of ``iceServers`` in the configuration of JavaScript's RTCPeerConnection."""
        given = {"urls": self.url, "username": self.username, "credential": self.credential}
        return {key: value for key, value in given.items() if value is not None}

    def as_link(self) -> str:
        """Value of the ``Link`` header of a WHIP answer (RFC 9725, section 4.6)."""
        link = f'<{self.url}>; rel="ice-server"'
        if self.username is None:
            return link
        return f'{link}; username="{self.username}"; credential="{self.credential}"; credential-type="password"'


class IceServers:
    """The configured STUN and TURN servers; makes TURN credentials for each peer."""

    def __init__(self, settings: IceSettings, clock: Callable[[], float] = time.time) -> None:
        """``clock`` returns seconds since 1970."""
        self._settings, self._clock = settings, clock

    def servers(self) -> list[IceServer]:
        """The servers with fresh TURN credentials; empty if none are configured."""
        s = self._settings
        if not s.servers:
            return []
        username = f"{int(self._clock()) + s.turn_ttl_s}:{USER}"
        digest = hmac.new(s.turn_secret.encode(), username.encode(), hashlib.sha1).digest()
        credential = base64.b64encode(digest).decode()
        return [
            IceServer(url) if url.startswith("stun:") else IceServer(url, username, credential)
            for url in s.servers.split()
        ]

    def configuration(self) -> RTCConfiguration:
        """Configuration of the daemon's own peer connections.

        The list of servers is given even if empty: without a list, aiortc contacts Google's STUN server, which also
        delays every answer by five seconds where it cannot be reached.  A STUN server with an IPv6 address is for the
        peers: aioice queries over IPv4 only.
        """
        from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy

        servers: list[Any] = [
            RTCIceServer(server.url, server.username, server.credential)
            for server in self.servers()
            if not server.url.startswith("stun:[")
        ]
        policy = RTCIceTransportPolicy.RELAY if self._settings.relay else RTCIceTransportPolicy.ALL
        return RTCConfiguration(iceServers=servers, iceTransportPolicy=policy)
