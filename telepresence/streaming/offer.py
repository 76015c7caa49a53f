"""A peer's SDP offer is hostile until it has passed here."""

from __future__ import annotations

import re

from insta_runtime.errors import UserError

MAX_BYTES = 64 * 1024
MAX_LINES = 2000
MAX_SECTIONS = 4
MAX_CANDIDATES = 64

_MDNS_CANDIDATE = re.compile(r"^(a=candidate:\S+ \d+ \S+ \d+ )\S+\.local( )", re.MULTILINE)


def read_offer(body: bytes, wants: str) -> str:
    """The SDP text in ``body``, checked for size and shape; ``wants`` is what its video must do: ``recv`` or ``send``.

    Raises UserError with one line that never quotes the offer (it holds addresses).  Names that only multicast DNS
    knows become 127.0.0.1: the request came over loopback, so the browser that hides behind the name is here, and
    resolving it would hold up the answer for a second.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the offer is not SDP: it is not UTF-8 text") from error
    lines = text.splitlines()
    sections = [line.split(" ", 1)[0] for line in lines if line.startswith("m=")]
    if not text.startswith("v=0"):
        raise UserError("the offer is not SDP: it must begin with v=0")
    if len(lines) > MAX_LINES or len(sections) > MAX_SECTIONS:
        raise UserError(f"the offer is too large: {MAX_SECTIONS} media sections and {MAX_LINES} lines are allowed")
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise UserError(f"the offer names too many addresses: {MAX_CANDIDATES} candidates are allowed")
    if sections.count("m=video") != 1:
        raise UserError("the offer must have exactly one video section")
    if _direction(lines) not in (f"{wants}only", "sendrecv"):
        raise UserError(f"the video section of the offer must be a={wants}only")
    return _MDNS_CANDIDATE.sub(r"\g<1>127.0.0.1\g<2>", text)


def _direction(lines: list[str]) -> str:
    """What the video section does; RFC 8866 takes ``sendrecv`` when nothing is said."""
    direction, section = "sendrecv", ""
    for line in lines:
        if line.startswith("m="):
            section = line.split(" ", 1)[0]
        elif section in ("", "m=video") and line in ("a=sendonly", "a=recvonly", "a=sendrecv", "a=inactive"):
            direction = line[2:]
    return direction


def first_video_codec(answer: str) -> str:
    """The codec that an SDP answer of our own settles on, e.g. ``H264``; empty when there is no video."""
    payload = re.search(r"^m=video \d+ \S+ (\d+)", answer, re.MULTILINE)
    if payload is None:
        return ""
    codec = re.search(rf"^a=rtpmap:{payload[1]} ([^/\s]+)/", answer, re.MULTILINE)
    return codec[1].upper() if codec else ""
