"""A peer's SDP offer is hostile until it has passed here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from insta_runtime.errors import UserError

MAX_BYTES: Final = 64 * 1024
MAX_LINES: Final = 2000
MAX_SECTIONS: Final = 4
MAX_CANDIDATES: Final = 64

_SECTIONS: Final = {"m=audio": 1, "m=video": 1, "m=application": 1}
"""What an offer may hold, and how often; anything else is declined by the answer, but counts for MAX_SECTIONS."""
_OPUS: Final = re.compile(r"a=rtpmap:\d+ opus/48000/2", re.IGNORECASE)
_DIRECTIONS: Final = {"a=sendonly", "a=recvonly", "a=sendrecv", "a=inactive"}


@dataclass(frozen=True)
class Offer:
    """An offer that is fit to be answered: ``sdp``, and whether its video section ``gives`` and ``takes`` pictures.

    ``sounds``: it has a section for Opus, too.
    """

    sdp: str
    gives: bool
    takes: bool
    sounds: bool = False


def read_offer(body: bytes, address: str = "127.0.0.1") -> Offer:
    """The offer in ``body``, checked for size and shape; ``address`` is where the request came from.

    Raises UserError with one line that never quotes the offer (it holds addresses).  A candidate whose address is a
    name is never looked up: what only multicast DNS knows becomes ``address``, behind which the browser hides (to
    resolve it would hold up the answer for a second), and any other name is left out.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the offer is not SDP: it is not UTF-8 text") from error
    # Exactly the line ends of SDP: Python knows more, and a parser that did not would see other sections.
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    sections = [line.split(" ", 1)[0] for line in lines if line.startswith("m=")]
    if not text.startswith("v=0"):
        raise UserError("the offer is not SDP: it must begin with v=0")
    if any(not line.isprintable() for line in lines):
        raise UserError("the offer is not SDP: it holds control characters")
    if len(lines) > MAX_LINES or len(sections) > MAX_SECTIONS:
        raise UserError(f"the offer is too large: {MAX_SECTIONS} media sections and {MAX_LINES} lines are allowed")
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise UserError(f"the offer names too many addresses: {MAX_CANDIDATES} candidates are allowed")
    if sections.count("m=video") != 1:
        raise UserError("the offer must have exactly one video section")
    if any(sections.count(kind) > most for kind, most in _SECTIONS.items()):
        raise UserError("the offer may have one audio, one video and one data section")
    direction = _direction(lines)
    sdp = "\r\n".join([*_reachable(lines, address), ""])
    sounds = "m=audio" in sections and any(_OPUS.match(line) for line in lines)
    return Offer(sdp, direction in ("sendonly", "sendrecv"), direction in ("recvonly", "sendrecv"), sounds)


def _direction(lines: list[str]) -> str:
    """What the video section does; RFC 8866 takes ``sendrecv`` when nothing is said."""
    direction, section = "sendrecv", ""
    for line in lines:
        if line.startswith("m="):
            section = line.split(" ", 1)[0]
        elif section in ("", "m=video") and line in _DIRECTIONS:
            direction = line[2:]
    return direction


def _reachable(lines: Iterable[str], address: str) -> Iterator[str]:
    """``lines`` without candidates that would have to be looked up."""
    for line in lines:
        parts = line.split(" ")
        if not line.startswith("a=candidate:") or len(parts) < 6 or _is_address(parts[4]):
            yield line
        elif parts[4].endswith(".local") and "%" not in address:  # an address that means this link alone is no use
            yield " ".join([*parts[:4], address, *parts[5:]])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def first_video_codec(answer: str) -> str:
    """The codec that an SDP answer settles on, e.g. ``H264``; empty when there is no video."""
    payload = re.search(r"^m=video [1-9]\d* \S+ (\d+)", answer, re.MULTILINE)
    if payload is None:
        return ""
    codec = re.search(rf"^a=rtpmap:{payload[1]} ([^/\s]+)/", answer, re.MULTILINE)
    return codec[1].upper() if codec else ""
