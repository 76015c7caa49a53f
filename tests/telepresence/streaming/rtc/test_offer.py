"""Validation of SDP offers: directions, candidates and limits."""

from __future__ import annotations

import pytest

from insta_runtime.errors import UserError
from telepresence.streaming.rtc.offer import parse_offer

HEAD = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0"]
VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96"


def sdp(*lines: str) -> bytes:
    return "\r\n".join([*HEAD, *lines, ""]).encode()


def test_mdns_names_become_the_address_of_the_request_and_other_names_are_removed() -> None:
    text = parse_offer(
        sdp(
            VIDEO,
            "a=recvonly",
            "a=candidate:1 1 udp 2113937151 f3825127-c952-44c7-ac5f-a7ca7359e75a.local 55842 typ host",
            "a=candidate:2 1 udp 2113937151 192.0.2.7 55843 typ host",
            "a=candidate:3 1 udp 2113937151 metadata.internal 80 typ host",
            "a=candidate:4 1 udp 2113937151 2001:db8::7 55844 typ host",
        ),
        "192.0.2.99",
    ).sdp
    assert ".local" not in text
    assert "a=candidate:1 1 udp 2113937151 192.0.2.99 55842 typ host\r\n" in text
    assert "192.0.2.7 55843" in text
    assert "2001:db8::7 55844" in text
    assert "internal" not in text


@pytest.mark.parametrize(
    ("lines", "sends", "receives"),
    [
        (["a=recvonly"], False, True),
        (["a=sendonly"], True, False),
        (["a=sendrecv"], True, True),
        ([], True, True),
        (["a=inactive"], False, False),
        (["a=recvonly", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=sendonly"], False, True),
    ],
)
def test_the_direction_of_the_video_section(lines: list[str], sends: bool, receives: bool) -> None:
    offer = parse_offer(sdp(VIDEO, *lines))
    assert (offer.sends_video, offer.receives_video) == (sends, receives)


def test_the_direction_may_be_given_at_session_level() -> None:
    offer = parse_offer(sdp("a=recvonly", VIDEO))
    assert (offer.sends_video, offer.receives_video) == (False, True)


@pytest.mark.parametrize(
    "lines",
    [
        [VIDEO, VIDEO],
        ["m=audio 9 UDP/TLS/RTP/SAVPF 111"],
        [VIDEO, "m=audio 9 X 1", "m=audio 9 X 1"],
        [VIDEO, "m=application 9 X 1", "m=application 9 X 1"],
        [VIDEO, *["m=text 9 X 1"] * 4],
        [VIDEO, *["a=candidate:1 1 udp 1 192.0.2.1 9 typ host"] * 65],
        [VIDEO, *["a=x"] * 2000],
        [VIDEO, "a=x\u2028m=video 9 X 1"],  # a line end for Python, not for SDP
        [VIDEO, "a=x\x00"],
        [VIDEO, "a=x\rb"],
    ],
)
def test_invalid_offers_are_refused_in_one_line_without_quoting_them(lines: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse_offer(sdp(*lines))
    assert "\n" not in str(refused.value)
    assert "192.0.2.1" not in str(refused.value)
