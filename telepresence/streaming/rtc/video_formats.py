"""Video formats of a received SDP offer: its codecs, and H.264 profiles beyond those that aiortc negotiates.

aiortc accepts H.264 in constrained baseline or baseline profile with packetization mode 1 only.  Its decoder,
libavcodec, decodes every profile, and its depacketiser reads modes 0 and 1 alike.  So the offer of a peer that only
sends is presented to aiortc as constrained baseline, and the answer repeats the parameters that were offered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from insta_runtime.errors import UserError

RECEIVED: Final = ("H264", "VP8")
"""Names of the video codecs that can be received and sent."""
NAMES: Final = {"VP9": "VP9", "AV1": "AV1", "AV1X": "AV1", "H265": "H.265", "HEVC": "H.265", "H266": "H.266"}
"""Names, for people, of video codecs that cannot be received, by their name in SDP."""
NEGOTIATED: Final = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"
"""Parameters of the H.264 format that aiortc accepts: constrained baseline, level 3.1, packetization mode 1."""
AUDIO_CODECS: Final = {"OPUS", "G722", "PCMU", "PCMA"}
"""Names of the audio codecs that can be received, in SDP."""

_RTPMAP: Final = re.compile(r"a=rtpmap:(\d+) ([^/\s]+)/")
_FMTP: Final = re.compile(r"a=fmtp:(\d+) (.*)")
_INTERLEAVED: Final = re.compile(r"(?:^|;)\s*packetization-mode=[2-9]")


def check_codecs(sdp: str, sends_video: bool) -> None:
    """Raise UserError, with what to set, if no video or audio codec of the offer can be used.

    ``sends_video``: the peer sends the video.
    """
    codecs = [codec for _, codec in _formats(sdp, "video")]
    if codecs and not set(codecs) & set(RECEIVED):
        found = ", ".join(dict.fromkeys(NAMES[codec] for codec in codecs if codec in NAMES)) or "other codecs"
        advice = "set the encoder to H.264 or VP8" if sends_video else "ask for H.264 or VP8"
        raise UserError(f"the offer has video in {found} only: {advice}")
    interleaved = [_INTERLEAVED.search(text) is not None for text in _h264_parameters(sdp).values()]
    if sends_video and codecs and "VP8" not in codecs and all(interleaved):
        raise UserError(
            "the offer has H.264 in interleaved packets only: set packetization-mode to 1, or the encoder to VP8"
        )
    audio = [codec for _, codec in _formats(sdp, "audio")]
    if audio and not set(audio) & AUDIO_CODECS:
        raise UserError("the offer has audio in no codec that can be received: set the audio encoder to Opus")


def as_baseline(sdp: str) -> str:
    """The offer ``sdp`` with every H.264 format that can be received in the parameters that aiortc accepts."""
    offered = _h264_parameters(sdp)
    usable = {payload for payload, text in offered.items() if _INTERLEAVED.search(text) is None}
    lines: list[str] = []
    for kind, line in _lines(sdp):
        fmtp, rtpmap = _FMTP.match(line), _RTPMAP.match(line)
        if kind == "video" and fmtp is not None and fmtp[1] in usable:
            continue
        lines.append(line)
        if kind == "video" and rtpmap is not None and rtpmap[1] in usable:
            lines.append(f"a=fmtp:{rtpmap[1]} {NEGOTIATED}")
    return "\r\n".join([*lines, ""])


def as_offered(answer: str, offer: str) -> str:
    """The SDP ``answer`` with the H.264 parameters of ``offer``; formats without parameters get none."""
    offered = _h264_parameters(offer)
    lines: list[str] = []
    for kind, line in _lines(answer):
        fmtp = _FMTP.match(line)
        if kind != "video" or fmtp is None or fmtp[1] not in offered:
            lines.append(line)
        elif offered[fmtp[1]]:
            lines.append(f"a=fmtp:{fmtp[1]} {offered[fmtp[1]]}")
    return "\r\n".join([*lines, ""])


def _h264_parameters(sdp: str) -> dict[str, str]:
    """Format parameters of the H.264 formats of the video section by payload type; empty where none are given."""
    found = {payload: "" for payload, codec in _formats(sdp, "video") if codec == "H264"}
    for kind, line in _lines(sdp):
        if kind == "video" and (fmtp := _FMTP.match(line)) is not None and fmtp[1] in found:
            found[fmtp[1]] = fmtp[2].strip()
    return found


def _formats(sdp: str, wanted: str) -> list[tuple[str, str]]:
    """Payload type and codec (upper case) of the formats of the sections of the kind ``wanted``."""
    matches = [_RTPMAP.match(line) for kind, line in _lines(sdp) if kind == wanted]
    return [(match[1], match[2].upper()) for match in matches if match is not None]


def _lines(sdp: str) -> Iterator[tuple[str, str]]:
    """Lines of ``sdp``, each with the kind of its media section, like ``video``; empty at session level."""
    kind = ""
    for line in sdp.replace("\r\n", "\n").rstrip("\n").split("\n"):
        if line.startswith("m="):
            kind = line[2:].split(" ", 1)[0]
        yield kind, line
