"""Settings of HTTP access: token, TLS certificate, names, allowed origins and rate limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from insta_runtime.config import setting
from insta_runtime.errors import UserError
from telepresence.runtime.addresses import is_loopback

MIN_TOKEN: Final = 16
"""Minimum length, in characters, of a token for a daemon that other machines can reach."""


@dataclass(frozen=True)
class AccessSettings:
    """Settings of HTTP access: the token of clients, TLS, host names, foreign origins, and the rate limit."""

    token: str = setting("", "token that clients must send, as a bearer token or once as /?token=; empty: none needed")
    tls_cert: str = setting("", "PEM file with the TLS certificate and its chain, for https")
    tls_key: str = setting("", "PEM file with the private key of the certificate")
    names: str = setting("", "host names of the daemon besides its IP addresses, separated by spaces")
    origins: str = setting(
        "", "origins of other web pages that may use the daemon, like https://example.org, by spaces"
    )
    offers: int = setting(
        300, "maximum rate of POST and PUT requests and wrong tokens from one address", unit="1/min", ge=1, le=100_000
    )

    def check(self, host: str) -> None:
        """Raise UserError for settings that are unsafe or incomplete for a daemon that listens on ``host``."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise UserError("TLS needs a certificate and its key: give both --tls-cert and --tls-key")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise UserError(
                "the token must consist of visible ASCII characters, without spaces: choose another --token"
            )
        if not is_loopback(host) and not (self.token and self.tls_cert):
            raise UserError(
                f"cannot listen on {host or 'all addresses'} without a token and TLS: give --token, --tls-cert and "
                "--tls-key, or listen on 127.0.0.1"
            )
        public = bool(self.names) or not is_loopback(host)
        if public and not self.token:
            raise UserError("stream.access.names makes the daemon reachable by other machines: it needs a --token")
        if public and len(self.token) < MIN_TOKEN:
            raise UserError(f"the token is too short for use on a network: it needs at least {MIN_TOKEN} characters")
        for origin in self.origins.split():
            if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise UserError(
                    f"stream.access.origins: {origin!r} is not an origin; write it like https://example.org"
                )
        for path in (self.tls_cert, self.tls_key):
            if path and not Path(path).is_file():
                raise UserError(f"TLS certificate or key not found: there is no file {path}")
