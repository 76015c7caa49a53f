"""What the daemon shows to whom: the knobs of access, of ways through networks, and of publishing."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from insta_runtime.config import setting
from insta_runtime.errors import UserError

MIN_TOKEN: Final = 16
"""Characters of a token that guards more than this machine."""


@dataclass(frozen=True)
class AccessSettings:
    """Who may ask, and how the way to here is protected."""

    token: str = setting("", "what whoever asks has to show, as a bearer token or once as /?token=; empty: nothing")
    tls_cert: str = setting("", "file with the certificate for https, PEM, with those that vouch for it")
    tls_key: str = setting("", "file with its private key, PEM")
    names: str = setting("", "names at which the daemon is reached beside its addresses, separated by spaces")
    origins: str = setting("", "other web pages that may use it, like https://example.org, separated by spaces")
    offers: int = setting(
        300, "offers and wishes that one address may send, and wrong tokens", unit="1/min", ge=1, le=100_000
    )

    def check(self, host: str) -> None:
        """Raise UserError for what does not go together with listening on ``host``."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise UserError("TLS needs a certificate and its key: give both --tls-cert and --tls-key")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise UserError("the token may hold visible ASCII characters alone")
        if not is_loopback(host) and not (self.token and self.tls_cert):
            raise UserError(
                f"cannot listen on {host or 'all addresses'} without a token and TLS: give --token, --tls-cert and "
                "--tls-key, or listen on 127.0.0.1"
            )
        public = bool(self.names) or not is_loopback(host)
        if public and not self.token:
            raise UserError("stream.access.names makes the daemon known to others: that needs a --token")
        if public and len(self.token) < MIN_TOKEN:
            raise UserError(f"the token is too short for a network: it takes {MIN_TOKEN} characters")
        for origin in self.origins.split():
            if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise UserError(f"stream.access.origins: {origin!r} is no origin, like https://example.org")
        for path in (self.tls_cert, self.tls_key):
            if path and not Path(path).is_file():
                raise UserError(f"there is no file {path}: TLS needs a certificate and its key")


@dataclass(frozen=True)
class IceSettings:
    """How peers find a way to the daemon that is not the direct one."""

    servers: str = setting(
        "", "STUN and TURN servers, like turn:turn.example.org:3478, separated by spaces; none: direct ways only"
    )
    turn_secret: str = setting("", "secret that is shared with the TURN server (coturn: static-auth-secret)")
    turn_ttl_s: int = setting(7200, "time for which credentials of TURN are good", unit="s", ge=60, le=86400)
    relay: bool = setting(False, "send the daemon's own media through the TURN server only, which hides its addresses")

    def check(self) -> None:
        """Raise UserError for servers that cannot be used."""
        kinds = [url.partition(":")[0] for url in self.servers.split()]
        for url, kind in zip(self.servers.split(), kinds, strict=True):
            if kind not in ("stun", "turn", "turns") or not url.partition(":")[2]:
                raise UserError(f"stream.ice.servers: {url!r} is no server, like stun:HOST:PORT")
        turn = any(kind != "stun" for kind in kinds)
        if kinds.count("stun") > 1 or len(kinds) - kinds.count("stun") > 1:
            raise UserError("stream.ice.servers: one STUN and one TURN server at most")
        if turn and not self.turn_secret:
            raise UserError("the TURN server needs stream.ice.turn_secret, of which credentials are made")
        if self.relay and not turn:
            raise UserError("stream.ice.relay needs a TURN server in stream.ice.servers")


@dataclass(frozen=True)
class PublishSettings:
    """The server that the avatar is published to, for more viewers than this machine can carry."""

    url: str = setting("", "WHIP address at which the avatar is published; empty: nowhere")
    token: str = setting("", "bearer token that it asks for")

    def check(self) -> None:
        """Raise UserError for an address that cannot be published to, or not without telling the token to everybody."""
        if not self.url:
            if self.token:
                raise UserError("a token to publish with needs an address to publish to: --publish URL")
            return
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.username is not None:
            raise UserError("--publish takes a WHIP address like https://example.org/whip/room")
        if self.token and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise UserError("--publish-token would cross the network unencrypted: use an https address")


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or a literal address, without brackets) means this very machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
