"""Who may ask for what: pure rules over the headers of a request, without a socket in sight."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from telepresence.runtime.rate_limiter import RateLimiter
from telepresence.streaming.access_settings import AccessSettings, is_loopback

READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN: Final = frozenset({"/healthz", "/door.css", "/icon.svg"})
"""What anybody may ask for who may reach the port: it tells nothing of anybody.  The page at the door needs it."""
SCARCE: Final = frozenset({"POST", "PUT"})
"""What costs the daemon something, and is rationed."""

BURST_S: Final = 15.0
"""Seconds' worth of the allowed rate that may come at once."""
MAX_ADDRESSES: Final = 4096
"""Maximum number of client addresses with a rate limit in memory; the longest unused are forgotten first."""


@dataclass(frozen=True)
class Asked:
    """A request as far as it matters for who may make it; texts are as they came, ``None`` where they did not."""

    method: str
    path: str
    query: str
    address: str
    host: str
    origin: str | None = None
    authorization: str | None = None
    cookie: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Why not: an HTTP status, one line for whoever asked, a shorter one for the log, headers to add."""

    status: int
    message: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Access:
    """The rules of one daemon."""

    def __init__(
        self, settings: AccessSettings, host: str, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``host`` and ``port`` are what the daemon listens on."""
        self._token = settings.token
        self._public = not is_loopback(host)
        self._names = frozenset(name.lower() for name in settings.names.split())
        self._origins = frozenset(settings.origins.split())
        self._scheme = "https" if settings.tls_cert else "http"
        self._secret = hmac.new(settings.token.encode(), b"telepresence cookie", hashlib.sha256).hexdigest()
        self.cookie_name = f"telepresence-{port}"  # cookies do not know ports: two daemons must not share one
        self._limiter = AddressRateLimiter(settings.offers / 60.0, max(1.0, settings.offers * BURST_S / 60.0), clock)

    def refuse(self, asked: Asked) -> Refusal | None:
        """Why ``asked`` is not answered; None if it is."""
        if not self._knows(asked.host):
            return Refusal(403, "this daemon does not answer to that name: see stream.access.names", "foreign Host")
        if asked.origin is not None and not self.own(asked) and not self.shares(asked.origin):
            return Refusal(403, "this daemon does not answer to other web pages", "foreign Origin")
        if asked.method == "OPTIONS" or asked.path in OPEN:
            return None
        return self._stranger(asked) or (self._excess(asked) if asked.method in SCARCE else None)

    def own(self, asked: Asked) -> bool:
        """Whether ``asked`` comes from a page of this daemon; at a name of its own a proxy may speak TLS for it."""
        schemes = {self._scheme, "https"} if _name(asked.host) in self._names else {self._scheme}
        return asked.origin in {f"{scheme}://{asked.host}" for scheme in schemes}

    def shares(self, origin: str | None) -> bool:
        """Whether pages of another ``origin`` may use this daemon."""
        return origin is not None and origin in self._origins

    def cookie(self, asked: Asked) -> str | None:
        """The Set-Cookie for who shows the token in the address of the page, and need not do so again."""
        if not self._token or asked.path != "/" or not self._matches(_shown(asked.query)):
            return None
        secure = "; Secure" if self._scheme == "https" else ""
        return f"{self.cookie_name}={self._secret}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _knows(self, host: str) -> bool:
        """Whether ``host`` is a name of this daemon.  Who rebinds a name of theirs to its address sends that name."""
        name = _name(host)
        return is_loopback(name) or name in self._names or (self._public and _is_address(name))

    def _stranger(self, asked: Asked) -> Refusal | None:
        """Why ``asked`` shows no token."""
        if not self._token:
            return None
        shown = _bearer(asked.authorization) or (_shown(asked.query) if asked.path == "/" else None)
        if shown is not None:
            if self._limiter.exhausted(asked.address):
                return self._excess(asked)
            if self._matches(shown):
                return None
            self._limiter.acquire(asked.address)
            return _asks_for_token("wrong token")
        if not self._has_cookie(asked.cookie):
            return _asks_for_token("no token")
        # A cookie comes along whoever made the browser ask; only a page of this daemon says that it was itself.
        if asked.method not in READS and not self.own(asked):
            return Refusal(
                403, "a cookie counts only for the daemon's own page: send the token", "cookie without Origin"
            )
        return None

    def _excess(self, asked: Asked) -> Refusal | None:
        wait = self._limiter.acquire(asked.address)
        if wait <= 0.0:
            return None
        after = {"Retry-After": str(max(1, round(wait + 0.5)))}
        return Refusal(429, "too many requests from your address; try again later", "too many requests", after)

    def _matches(self, shown: str | None) -> bool:
        return shown is not None and _same(shown, self._token)

    def _has_cookie(self, header: str | None) -> bool:
        try:
            morsel = SimpleCookie(header or "").get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and _same(morsel.value, self._secret)


class AddressRateLimiter:
    """One `RateLimiter` for each client address; the longest unused ones are forgotten beyond `MAX_ADDRESSES`.

    An IPv4 address, or the /64 network of an IPv6 address, counts as one client.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """``rate`` in requests a second and ``burst`` in requests, for each address; ``clock`` gives seconds."""
        self._rate, self._burst, self._clock = rate, burst, clock
        self._limiters: OrderedDict[str, RateLimiter] = OrderedDict()  # the longest unused first

    def exhausted(self, address: str) -> bool:
        """Whether ``address`` has used up its requests for now."""
        limiter = self._limiters.get(_network(address))
        return limiter is not None and limiter.available(self._clock()) < 1.0

    def acquire(self, address: str) -> float:
        """Count one request of ``address``: 0.0 if it is allowed, else the seconds until the next one is."""
        network, now = _network(address), self._clock()
        limiter = self._limiters.setdefault(network, RateLimiter(self._rate, self._burst))
        self._limiters.move_to_end(network)
        while len(self._limiters) > MAX_ADDRESSES:
            self._limiters.popitem(last=False)
        return 0.0 if limiter.acquire(now) else limiter.wait_s(now)


def _same(shown: str, secret: str) -> bool:
    """Whether both are equal, in a time that tells nothing of how alike they are, nor of the length of the secret."""
    one, two = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (shown, secret))
    return hmac.compare_digest(one, two)


def _bearer(authorization: str | None) -> str | None:
    """What ``Authorization: Bearer`` shows (RFC 6750)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _shown(query: str) -> str | None:
    """What ``?token=`` shows."""
    try:
        return parse_qs(query, max_num_fields=8).get("token", [None])[0]
    except ValueError:
        return None


def _asks_for_token(reason: str) -> Refusal:
    message = "this daemon wants its token: open its page once as /?token=TOKEN, or send it as a bearer token"
    return Refusal(401, message, reason, {"WWW-Authenticate": 'Bearer realm="telepresence"'})


def _name(host: str) -> str:
    """A Host header without its port, in small letters; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _network(address: str) -> str:
    """What one person can be taken to own: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
