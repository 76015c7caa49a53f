"""The servers that help peers to find a way to each other, and credentials that are good for a while.

Credentials of TURN are made as coturn's ``use-auth-secret`` reads them: the user name is the time at which they end,
the password an HMAC-SHA1 of it under a secret that the daemon and the TURN server share
(draft-uberti-behave-turn-rest-00, section 2.2).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from telepresence.streaming.access_settings import IceSettings

if TYPE_CHECKING:
    from aiortc import RTCConfiguration

USER: Final = "telepresence"


@dataclass(frozen=True)
class IceServer:
    """One server; ``username`` and ``credential`` of TURN alone."""

    url: str
    username: str | None = None
    credential: str | None = None

    def as_json(self) -> dict[str, str]:
        """As JavaScript's RTCPeerConnection takes it."""
        given = {"urls": self.url, "username": self.username, "credential": self.credential}
        return {key: value for key, value in given.items() if value is not None}

    def as_link(self) -> str:
        """As a Link header of WHIP names it (RFC 9725, section 4.6)."""
        link = f'<{self.url}>; rel="ice-server"'
        if self.username is None:
            return link
        return f'{link}; username="{self.username}"; credential="{self.credential}"; credential-type="password"'


class IceServers:
    """The servers of the configuration, each time with fresh credentials."""

    def __init__(self, settings: IceSettings, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives seconds since 1970."""
        self._settings, self._clock = settings, clock

    def now(self) -> list[IceServer]:
        """For a peer that is to be connected now."""
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
        """What the daemon's own end of a connection uses.

        Never none: without a list aiortc asks Google's STUN server, and waits five seconds where that is unreachable.
        """
        from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy

        servers: list[Any] = [RTCIceServer(s.url, s.username, s.credential) for s in self.now()]
        policy = RTCIceTransportPolicy.RELAY if self._settings.relay else RTCIceTransportPolicy.ALL
        return RTCConfiguration(iceServers=servers, iceTransportPolicy=policy)
