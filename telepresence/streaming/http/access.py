"""Access rules for HTTP requests: host names, origins, token, cookie and rate limit, decided from the headers alone."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from telepresence.runtime.addresses import client_network, is_ip_address, is_loopback, without_brackets
from telepresence.runtime.rate_limiter import RateLimiter
from telepresence.streaming.http.settings import AccessSettings

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""HTTP methods that change nothing; a cookie is accepted for them from any page."""
OPEN_PATHS: Final = frozenset({"/healthz", "/login.css", "/icon.svg"})
"""Paths that are served without a token: the health check, and the files of the login page."""
LIMITED_METHODS: Final = frozenset({"POST", "PUT"})
"""HTTP methods that count for the rate limit of an address."""

BURST_S: Final = 15.0
"""Burst of the rate limit: an idle address may send at once what the rate allows in this number of seconds."""
MAX_ADDRESSES: Final = 4096
"""Maximum number of client addresses with a rate limit in memory; the longest unused are forgotten first."""


@dataclass(frozen=True)
class ClientRequest:
    """The parts of an HTTP request that decide about access; header values are unparsed, None where a header is absent.

    ``address`` is the IP address of the client; ``query`` the query string of the URL.
    """

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
    """Reason why a request is refused: HTTP status, one line for the client, a shorter one for the log, and headers."""

    status: int
    message: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


class AccessPolicy:
    """Access rules of one daemon: decides whether a request is answered."""

    def __init__(
        self, settings: AccessSettings, host: str, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``host`` and ``port`` are those that the daemon listens on; ``clock`` returns seconds, for the rate limit."""
        self._token = settings.token
        self._public = not is_loopback(without_brackets(host))
        self._names = frozenset(name.lower() for name in settings.names.split())
        self._origins = frozenset(settings.origins.split())
        self._scheme = "https" if settings.tls_cert else "http"
        self._secret = hmac.new(settings.token.encode(), b"telepresence cookie", hashlib.sha256).hexdigest()
        # Browsers send a cookie to every port of a host: the name keeps those of two daemons apart.
        self.cookie_name = f"telepresence-{port}"
        self._limiter = AddressRateLimiter(settings.offers / 60.0, max(1.0, settings.offers * BURST_S / 60.0), clock)

    def check(self, request: ClientRequest) -> Refusal | None:
        """The reason why ``request`` is refused; None if it is allowed."""
        if not self._is_own_host(request.host):
            return Refusal(
                403, "the daemon does not answer to this host name: add it to stream.access.names", "foreign Host"
            )
        if request.origin is not None and not self.is_own_page(request) and not self.allows_origin(request.origin):
            return Refusal(
                403, "requests from other web pages are refused: see stream.access.origins", "foreign Origin"
            )
        if request.method == "OPTIONS" or request.path in OPEN_PATHS:
            return None
        return self._check_token(request) or (self._check_rate(request) if request.method in LIMITED_METHODS else None)

    def is_own_page(self, request: ClientRequest) -> bool:
        """Whether ``request`` comes from a page of this daemon, to judge by its Origin.

        At a configured name, https counts as well: a reverse proxy may add TLS.
        """
        schemes = {self._scheme, "https"} if _host_name(request.host) in self._names else {self._scheme}
        return request.origin in {f"{scheme}://{request.host}" for scheme in schemes}

    def allows_origin(self, origin: str | None) -> bool:
        """Whether pages of the foreign ``origin`` may use this daemon."""
        return origin is not None and origin in self._origins

    def login_cookie(self, request: ClientRequest) -> str | None:
        """Set-Cookie header for a request of the page with the right ``?token=``; None for any other request."""
        if not self._token or request.path != "/" or not self._is_token(_query_token(request.query)):
            return None
        secure = "; Secure" if self._scheme == "https" else ""
        return f"{self.cookie_name}={self._secret}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _is_own_host(self, host: str) -> bool:
        """Whether ``host`` names this daemon; it does not in an attack by DNS rebinding."""
        name = _host_name(host)
        return is_loopback(name) or name in self._names or (self._public and is_ip_address(name))

    def _check_token(self, request: ClientRequest) -> Refusal | None:
        """The reason why the token or cookie of ``request`` is not accepted; None if it is, or none is needed."""
        if not self._token:
            return None
        token = _bearer_token(request.authorization) or (_query_token(request.query) if request.path == "/" else None)
        if token is not None:
            if self._limiter.exhausted(request.address):
                return self._check_rate(request)
            if self._is_token(token):
                return None
            self._limiter.acquire(request.address)
            return _token_needed("wrong token")
        if not self._has_cookie(request.cookie):
            return _token_needed("no token")
        # A browser sends the cookie for requests of any page; Origin shows whether it is the daemon's own page.
        if request.method not in SAFE_METHODS and not self.is_own_page(request):
            return Refusal(
                403,
                "the cookie is accepted from the daemon's own page only: send the token as a bearer token",
                "cookie without Origin",
            )
        return None

    def _check_rate(self, request: ClientRequest) -> Refusal | None:
        wait = self._limiter.acquire(request.address)
        if wait <= 0.0:
            return None
        retry = {"Retry-After": str(max(1, round(wait + 0.5)))}
        return Refusal(429, "too many requests from your address; try again later", "too many requests", retry)

    def _is_token(self, token: str | None) -> bool:
        return token is not None and _equal(token, self._token)

    def _has_cookie(self, header: str | None) -> bool:
        try:
            morsel = SimpleCookie(header or "").get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and _equal(morsel.value, self._secret)


class AddressRateLimiter:
    """One `RateLimiter` for each client address; the longest unused ones are forgotten beyond `MAX_ADDRESSES`.

    An IPv4 address, or the /64 network of an IPv6 address, counts as one client.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """``rate`` in requests a second and ``burst`` in requests, for each address; ``clock`` returns seconds."""
        self._rate, self._burst, self._clock = rate, burst, clock
        self._limiters: OrderedDict[str, RateLimiter] = OrderedDict()  # the longest unused first

    def exhausted(self, address: str) -> bool:
        """Whether ``address`` has used up its requests for now."""
        limiter = self._limiters.get(client_network(address))
        return limiter is not None and limiter.available(self._clock()) < 1.0

    def acquire(self, address: str) -> float:
        """Count one request of ``address``: 0.0 if it is allowed, else the seconds until the next one is."""
        network, now = client_network(address), self._clock()
        limiter = self._limiters.setdefault(network, RateLimiter(self._rate, self._burst))
        self._limiters.move_to_end(network)
        while len(self._limiters) > MAX_ADDRESSES:
            self._limiters.popitem(last=False)
        return 0.0 if limiter.acquire(now) else limiter.wait_s(now)


def _equal(text: str, secret: str) -> bool:
    """Whether both are equal, compared in a time that depends neither on their content nor on their length."""
    one, two = (hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest() for value in (text, secret))
    return hmac.compare_digest(one, two)


def _bearer_token(authorization: str | None) -> str | None:
    """Token of an ``Authorization: Bearer`` header (RFC 6750); None for another or no scheme."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _query_token(query: str) -> str | None:
    """Value of ``token`` in a query string; None if there is none."""
    try:
        return parse_qs(query, max_num_fields=8).get("token", [None])[0]
    except ValueError:
        return None


def _token_needed(reason: str) -> Refusal:
    message = "the daemon needs its token: open its page once as /?token=TOKEN, or send a bearer token"
    return Refusal(401, message, reason, {"WWW-Authenticate": 'Bearer realm="telepresence"'})


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
