"""Settings of WebRTC connections: STUN and TURN servers, and the WHIP server that the avatar is published to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from insta_runtime.config import setting
from insta_runtime.errors import UserError
from telepresence.runtime.addresses import is_ip_address, is_loopback

SERVER: Final = re.compile(
    r"(stun|turns?):(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?(\?transport=(?:udp|tcp))?", re.ASCII
)
"""URL of a STUN or TURN server: scheme, IPv6 address or other host, port, and transport (RFC 7064, RFC 7065)."""


@dataclass(frozen=True)
class IceSettings:
    """Settings of ICE: the STUN and TURN servers through which peers find a path to the daemon."""

    servers: str = setting(
        "", "STUN and TURN servers, like turn:turn.example.org:3478, separated by spaces; empty: direct paths only"
    )
    turn_secret: str = setting("", "secret shared with the TURN server (coturn: static-auth-secret)")
    turn_ttl_s: int = setting(7200, "lifetime of TURN credentials", unit="s", ge=60, le=86400)
    relay: bool = setting(False, "send the daemon's media through the TURN server only, which hides its addresses")

    def check(self) -> None:
        """Raise UserError for a malformed or unsupported list of servers, or a TURN server without its secret."""
        kinds = [url.partition(":")[0] for url in self.servers.split()]
        for url in self.servers.split():
            found = SERVER.fullmatch(url)
            literal = found is not None and (found[2] or (found[3] if re.fullmatch(r"[\d.]+", found[3]) else None))
            if (
                found is None
                or (literal and not is_ip_address(literal))
                or not 0 < int(found[4] or 1) <= 65_535
                or (found[1] == "stun" and found[5])
            ):
                raise UserError(
                    f"stream.ice.servers: {url!r} is not a STUN or TURN server; write it like stun:HOST:PORT, an IPv6"
                    " address in brackets"
                )
        turn = any(kind != "stun" for kind in kinds)
        if kinds.count("stun") > 1 or len(kinds) - kinds.count("stun") > 1:
            raise UserError("stream.ice.servers: at most one STUN and one TURN server can be given")
        if turn and not self.turn_secret:
            raise UserError("the TURN server needs stream.ice.turn_secret, the secret that credentials are made from")
        if self.relay and not turn:
            raise UserError("stream.ice.relay needs a TURN server in stream.ice.servers")


@dataclass(frozen=True)
class PublishSettings:
    """Settings of publishing by WHIP: address and token of the server that distributes the avatar to many viewers."""

    url: str = setting("", "WHIP address that the avatar is published to; empty: not published")
    token: str = setting("", "bearer token for the WHIP server")

    def check(self) -> None:
        """Raise UserError for an address that is no WHIP address, or that would send the token unencrypted."""
        if not self.url:
            if self.token:
                raise UserError("--publish-token needs the address of a WHIP server: give --publish URL")
            return
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.username is not None:
            raise UserError("--publish needs a WHIP address like https://example.org/whip/room")
        if self.token and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise UserError("--publish-token would cross the network unencrypted: use an https address")
