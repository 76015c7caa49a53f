"""Access rules: host names, origins, token, cookie, rate limit, and random headers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from telepresence.streaming.http.access import MAX_ADDRESSES, AccessPolicy, AddressRateLimiter, ClientRequest
from telepresence.streaming.http.settings import AccessSettings
from telepresence.streaming.rtc.settings import IceSettings
from telepresence.streaming.settings import StreamSettings

TOKEN = "correct-horse-battery"
LOCAL = ClientRequest("GET", "/status", "", "127.0.0.1", "127.0.0.1:8080")
OWN = "http://127.0.0.1:8080"
BEARER = f"Bearer {TOKEN}"


def access(token: str = TOKEN, host: str = "127.0.0.1", offers: int = 100_000, **more: str) -> AccessPolicy:
    return AccessPolicy(AccessSettings(token=token, offers=offers, **more), host, 8080)


def status(rules: AccessPolicy, request: ClientRequest) -> int:
    refusal = rules.check(request)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8080", True),
        ("127.8.8.8", True),
        ("evil.example", False),  # a foreign name that resolves to 127.0.0.1 (DNS rebinding)
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.7:8080", False),
        ("", False),
        ("[", False),
        ("@127.0.0.1@evil.example", False),
        ("avatar.example.org", False),
    ],
)
def test_host_names_of_a_local_daemon(host: str, known: bool) -> None:
    assert status(access(""), replace(LOCAL, host=host)) == (200 if known else 403)


def test_host_names_of_a_daemon_on_a_network() -> None:
    rules = access(host="0.0.0.0", names="Avatar.example.org cam")
    request = replace(LOCAL, authorization=BEARER)
    for host in ("avatar.example.org:8080", "CAM", "192.0.2.7:8080", "[2001:db8::7]", "127.0.0.1"):
        assert status(rules, replace(request, host=host)) == 200
    for host in ("evil.example", "avatar.example.org.evil.example", ""):
        assert status(rules, replace(request, host=host)) == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:1", "https://127.0.0.1:8080"])
def test_foreign_origins_are_refused_with_and_without_the_token(origin: str) -> None:
    for request in (LOCAL, replace(LOCAL, authorization=BEARER), replace(LOCAL, method="OPTIONS")):
        assert status(access(), replace(request, origin=origin)) == 403
    assert status(access(""), replace(LOCAL, origin=origin)) == 403


def test_pages_of_allowed_origins_need_the_token_too() -> None:
    rules = access(origins="https://show.example http://localhost:3000")
    request = replace(LOCAL, origin="https://show.example")
    assert status(rules, request) == 401
    assert status(rules, replace(request, authorization=BEARER)) == 200
    assert status(rules, replace(request, method="OPTIONS")) == 200
    assert status(rules, replace(request, origin="https://show.example.evil.example")) == 403


def test_without_a_token_this_machine_is_trusted() -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert status(access(""), replace(LOCAL, method=method)) == 200
        assert status(access(""), replace(LOCAL, method=method, origin=OWN)) == 200


@pytest.mark.parametrize(
    ("authorization", "wanted"),
    [
        (None, 401),
        (BEARER, 200),
        (f"bearer  {TOKEN} ", 200),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        ("Bearer \udcff\x00ü", 401),
    ],
)
def test_the_token_as_a_bearer(authorization: str | None, wanted: int) -> None:
    request = replace(LOCAL, authorization=authorization)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        assert status(access(), replace(request, method=method)) == wanted
    refusal = access().check(request)
    assert refusal is None or refusal.headers["WWW-Authenticate"].startswith("Bearer")


def cookie(rules: AccessPolicy) -> str:
    given = rules.login_cookie(ClientRequest("GET", "/", f"token={TOKEN}", "127.0.0.1", "127.0.0.1:8080"))
    assert given is not None
    return given


def test_the_token_in_the_url_of_the_page_is_exchanged_for_a_cookie() -> None:
    rules = access()
    page = replace(LOCAL, path="/", query=f"token={TOKEN}")
    assert status(rules, page) == 200
    given = cookie(rules)
    assert given.startswith("telepresence-8080=")
    assert given.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert TOKEN not in given
    assert cookie(access(tls_cert="cert", tls_key="key")).endswith("; Secure")
    for other in (
        replace(page, query="token=wrong"),
        replace(page, query="token="),
        replace(page, query=""),
        replace(page, path="/status"),
        replace(page, query="&".join(["a=1"] * 50)),
    ):
        assert rules.login_cookie(other) is None
        assert status(rules, other) == 401


def test_the_cookie_is_accepted_from_the_own_page_only() -> None:
    rules = access()
    request = replace(LOCAL, cookie=f"other=1; {cookie(rules).split(';')[0]}")
    assert status(rules, request) == 200
    for method in ("POST", "PUT", "DELETE"):
        assert status(rules, replace(request, method=method)) == 403
        assert status(rules, replace(request, method=method, origin=OWN)) == 200
    assert status(access("another-token-altogether"), request) == 401
    assert status(rules, replace(request, cookie=f"telepresence-8080={TOKEN}")) == 401
    assert status(rules, replace(request, cookie="telepresence-8080=")) == 401


def test_behind_a_tls_proxy_the_page_counts_as_own_page() -> None:
    rules = access(names="avatar.example.org")
    shown = cookie(rules).split(";")[0]
    request = replace(
        LOCAL, method="POST", host="avatar.example.org", cookie=shown, origin="https://avatar.example.org"
    )
    assert status(rules, request) == 200
    assert status(rules, replace(request, origin="https://other.example.org")) == 403
    assert status(rules, replace(request, host="127.0.0.1:8080", origin="https://127.0.0.1:8080")) == 403


def test_the_health_check_needs_no_token() -> None:
    assert status(access(), replace(LOCAL, path="/healthz")) == 200
    assert status(access(), replace(LOCAL, path="/healthz", host="evil.example")) == 403


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_limit_applies_to_each_address() -> None:
    clock = Clock()
    rules = AccessPolicy(AccessSettings(offers=60), "127.0.0.1", 8080, clock)
    request = replace(LOCAL, method="POST", address="192.0.2.1")
    answers = [status(rules, request) for _ in range(20)]
    assert answers == [200] * 15 + [429] * 5
    refusal = rules.check(request)
    assert refusal is not None
    assert 1 <= int(refusal.headers["Retry-After"]) <= 2
    assert status(rules, replace(request, address="192.0.2.2")) == 200
    assert status(rules, replace(request, method="GET")) == 200
    assert status(rules, replace(request, method="DELETE")) == 200
    clock.now = 1.01
    assert [status(rules, request) for _ in range(2)] == [200, 429]


def test_after_many_wrong_tokens_the_right_one_is_refused_too() -> None:
    clock = Clock()
    rules = AccessPolicy(AccessSettings(token=TOKEN, offers=60), "127.0.0.1", 8080, clock)
    wrong = [status(rules, replace(LOCAL, authorization=f"Bearer {i}")) for i in range(17)]
    assert wrong == [401] * 15 + [429] * 2
    assert status(rules, replace(LOCAL, authorization=BEARER)) == 429
    assert status(rules, replace(LOCAL, authorization=BEARER, address="192.0.2.2")) == 200
    assert (
        status(rules, replace(LOCAL, cookie=cookie(rules).split(";")[0])) == 200
    )  # the page with its cookie still works
    clock.now = 10.0
    assert status(rules, replace(LOCAL, authorization=BEARER)) == 200


def test_an_ipv6_network_counts_as_one_address_and_memory_is_bounded() -> None:
    clock = Clock()
    limiter = AddressRateLimiter(1.0, 2.0, clock)
    assert [limiter.acquire(f"2001:db8::{i}") > 0 for i in range(1, 4)] == [False, False, True]
    assert limiter.acquire("2001:db8:0:1::1") == 0.0
    assert [limiter.acquire(a) > 0 for a in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1")] == [False, False, True]
    for i in range(3 * MAX_ADDRESSES):
        limiter.acquire(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(limiter._limiters) == MAX_ADDRESSES


anything = st.text(max_size=60)
headers = st.none() | anything
tokens = st.sampled_from(
    ["Bearer ", "bearer", "token=", "telepresence-8080=", TOKEN, "localhost", ";", "http://", "[", "@"]
)
pieces = st.lists(tokens | anything, max_size=4).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        ClientRequest,
        st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]) | anything,
        st.sampled_from(["/", "/status", "/whep", "/healthz"]) | anything,
        pieces,
        anything,
        pieces,
        headers | pieces,
        headers | pieces,
        headers | pieces,
    )
)
def test_only_the_token_gives_access(request: ClientRequest) -> None:
    """Every request gets an answer, and only requests with the token are allowed."""
    rules = access()
    refusal = rules.check(request)
    rules.login_cookie(request)
    if refusal is not None:
        assert refusal.status in (401, 403, 429)
        assert "\n" not in refusal.message + refusal.reason + "".join(refusal.headers.values())
        assert TOKEN not in refusal.message
    elif request.method != "OPTIONS" and request.path != "/healthz":
        assert TOKEN in (request.authorization or "") or (request.path == "/" and TOKEN in request.query)


@pytest.mark.parametrize(
    ("host", "given_settings", "words"),
    [
        ("0.0.0.0", {}, "token and TLS"),
        ("0.0.0.0", {"token": TOKEN}, "token and TLS"),
        ("192.0.2.1", {"tls_cert": __file__, "tls_key": __file__}, "token and TLS"),
        ("0.0.0.0", {"token": "short", "tls_cert": __file__, "tls_key": __file__}, "16 characters"),
        ("127.0.0.1", {"names": "avatar.example.org"}, "needs a --token"),
        ("127.0.0.1", {"names": "avatar.example.org", "token": "short"}, "16 characters"),
        ("127.0.0.1", {"token": "two words"}, "visible ASCII"),
        ("127.0.0.1", {"token": "schlüssel"}, "visible ASCII"),
        ("127.0.0.1", {"tls_cert": __file__}, "both --tls-cert and --tls-key"),
        ("127.0.0.1", {"tls_cert": "/nowhere", "tls_key": "/nowhere"}, "no file /nowhere"),
        ("127.0.0.1", {"origins": "example.org"}, "not an origin"),
        ("127.0.0.1", {"origins": "https://example.org/"}, "not an origin"),
        ("127.0.0.1", {"origins": "*"}, "not an origin"),
    ],
)
def test_unsafe_access_settings_are_refused(host: str, given_settings: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        StreamSettings(host=host, access=AccessSettings(**given_settings)).check()
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"servers": "example.org"}, "not a STUN or TURN server"),
        ({"servers": "http:example.org"}, "not a STUN or TURN server"),
        ({"servers": "stun:"}, "not a STUN or TURN server"),
        ({"servers": "turn:example.org"}, "turn_secret"),
        ({"servers": "stun:a stun:b"}, "one STUN and one TURN"),
        ({"servers": "turn:a turns:b", "turn_secret": "s"}, "one STUN and one TURN"),
        ({"relay": True}, "TURN server"),
        ({"servers": "stun:a", "relay": True}, "TURN server"),
    ],
)
def test_unusable_ice_servers_are_refused(given_settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        StreamSettings(ice=IceSettings(**given_settings)).check()  # type: ignore[arg-type]
