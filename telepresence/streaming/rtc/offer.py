"""Validation of SDP offers from untrusted peers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from insta_runtime.errors import UserError
from telepresence.runtime.addresses import is_ip_address, parse_ip

MAX_BYTES: Final = 64 * 1024
"""Maximum size in bytes of an SDP offer or answer."""
MAX_LINES: Final = 2000
"""Maximum number of lines in an SDP offer."""
MAX_SECTIONS: Final = 4
"""Maximum number of media sections in an SDP offer."""
MAX_CANDIDATES: Final = 64
"""Maximum number of ICE candidates accepted in one SDP offer."""

_MAX_OF_KIND: Final = {"m=audio": 1, "m=video": 1, "m=application": 1}
"""Maximum number of media sections of each kind in an SDP offer; the answer declines sections of other kinds."""
_OPUS: Final = re.compile(r"a=rtpmap:\d+ opus/48000/2", re.IGNORECASE)
_DIRECTIONS: Final = {"a=sendonly", "a=recvonly", "a=sendrecv", "a=inactive"}


@dataclass(frozen=True)
class Offer:
    """A validated SDP offer: its text, and the directions of its media.

    ``sends_video`` and ``receives_video`` are the directions of its video section, seen from the peer; ``has_opus``:
    it has an audio section with Opus.
    """

    sdp: str
    sends_video: bool
    receives_video: bool
    has_opus: bool = False


def parse_offer(body: bytes, address: str = "127.0.0.1") -> Offer:
    """Validate the SDP offer ``body`` of a request from the IP address ``address``.

    Raises UserError with one line that never quotes the offer, which contains addresses of the peer.  Host names in
    candidates are never resolved: a name of multicast DNS (``.local``), behind which browsers hide an address, is
    replaced by ``address`` (resolving it would delay the answer by a second); any other name is removed.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the offer is not SDP: it is not UTF-8 text") from error
    # Only the line ends of SDP: Python splits at more characters, and aiortc's parser would then see other sections.
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    sections = [line.split(" ", 1)[0] for line in lines if line.startswith("m=")]
    if not text.startswith("v=0"):
        raise UserError("the offer is not SDP: it must begin with v=0")
    if any(not line.isprintable() for line in lines):
        raise UserError("the offer is not SDP: it contains control characters")
    if len(lines) > MAX_LINES or len(sections) > MAX_SECTIONS:
        raise UserError(
            f"the offer is too large: at most {MAX_SECTIONS} media sections and {MAX_LINES} lines are allowed"
        )
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise UserError(f"the offer has too many ICE candidates: at most {MAX_CANDIDATES} are allowed")
    if sections.count("m=video") != 1:
        raise UserError("the offer must have exactly one video section")
    if any(sections.count(kind) > most for kind, most in _MAX_OF_KIND.items()):
        raise UserError("the offer may have at most one audio, one video and one data section")
    direction = _video_direction(lines)
    address = str(parse_ip(address) or address)  # a server on all addresses sees IPv4 written as IPv6
    sdp = "\r\n".join([*_without_host_names(lines, address), ""])
    has_opus = "m=audio" in sections and any(_OPUS.match(line) for line in lines)
    return Offer(sdp, direction in ("sendonly", "sendrecv"), direction in ("recvonly", "sendrecv"), has_opus)


def _video_direction(lines: list[str]) -> str:
    """Direction of the video section; ``sendrecv`` where none is given (RFC 8866)."""
    direction, section = "sendrecv", ""
    for line in lines:
        if line.startswith("m="):
            section = line.split(" ", 1)[0]
        elif section in ("", "m=video") and line in _DIRECTIONS:
            direction = line[2:]
    return direction


def _without_host_names(lines: Iterable[str], address: str) -> Iterator[str]:
    """``lines`` with host names in candidates replaced by ``address`` (``.local``) or removed (others)."""
    for line in lines:
        parts = line.split(" ")
        if not line.startswith("a=candidate:") or len(parts) < 6 or is_ip_address(parts[4]):
            yield line
        elif parts[4].endswith(".local") and "%" not in address:  # a link-local address with a zone cannot be used
            yield " ".join([*parts[:4], address, *parts[5:]])


def first_video_codec(answer: str) -> str:
    """Name of the first video codec in an SDP answer, like ``H264``; empty if it has no video."""
    payload = re.search(r"^m=video [1-9]\d* \S+ (\d+)", answer, re.MULTILINE)
    if payload is None:
        return ""
    codec = re.search(rf"^a=rtpmap:{payload[1]} ([^/\s]+)/", answer, re.MULTILINE)
    return codec[1].upper() if codec else ""
