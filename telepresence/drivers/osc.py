"""Parser of Open Sound Control 1.0 (OSC) packets: messages and bundles, from untrusted bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from insta_runtime.errors import UserError

Value = float | int | str | bytes | bool | None
"""Argument of an OSC message."""

DEPTH: Final = 4
"""Maximum nesting depth of bundles."""
MESSAGES: Final = 1024
"""Maximum number of messages in a packet."""

_FIXED: Final = {"i": (">i", 4), "f": (">f", 4), "h": (">q", 8), "d": (">d", 8), "t": (">Q", 8), "r": (">I", 4)}
_CONSTANT: Final[dict[str, bool | float | None]] = {"T": True, "F": False, "N": None, "I": float("inf")}


@dataclass(frozen=True)
class OscMessage:
    """An OSC message: address and arguments; ``fault`` is the reason why its arguments cannot be read, else None."""

    address: str
    values: tuple[Value, ...]
    fault: str | None = None


def parse_packet(packet: bytes) -> list[OscMessage]:
    """Parse all messages of ``packet``, those of bundles in their order; time tags are ignored.

    A message whose arguments cannot be read has a ``fault``; one without an address is left out of its bundle.

    Raises:
        UserError: the packet is not OSC, nested too deeply, or has too many messages.
    """
    try:
        found = []
        for message in _elements(memoryview(packet), DEPTH):
            found.append(message)
            if len(found) > MESSAGES:
                raise UserError(f"malformed packet: more than {MESSAGES} OSC messages")
        return found
    except (struct.error, UnicodeDecodeError, IndexError):
        raise UserError("malformed packet: not OSC, or truncated") from None


def _elements(packet: memoryview, depth: int) -> Iterator[OscMessage]:
    if bytes(packet[:8]) != b"#bundle\0":
        try:
            address, start = _text(packet, 0)
            if not address.startswith("/"):
                raise UserError("malformed packet: no OSC address")
        except (UserError, UnicodeDecodeError, IndexError):
            if depth == DEPTH:
                raise
            return
        yield _message(address, packet, start)
        return
    if depth == 0:
        raise UserError(f"malformed packet: OSC bundles nested deeper than {DEPTH}")
    start = 16
    if len(packet) < start:
        raise IndexError
    while start < len(packet):
        (size,) = struct.unpack_from(">i", packet, start)
        start += 4
        if size <= 0 or size % 4 or start + size > len(packet):
            raise IndexError
        yield from _elements(packet[start : start + size], depth - 1)
        start += size


def _message(address: str, packet: memoryview, start: int) -> OscMessage:
    """Message with the arguments that begin at ``start``."""
    if start >= len(packet):
        return OscMessage(address, ())
    try:
        return OscMessage(address, tuple(_arguments(packet, start)))
    except UserError as error:
        return OscMessage(address, (), str(error))
    except (struct.error, UnicodeDecodeError, IndexError):
        return OscMessage(address, (), "malformed packet: the arguments of an OSC message are truncated")


def _arguments(packet: memoryview, start: int) -> list[Value]:
    tags, start = _text(packet, start)
    if not tags.startswith(","):
        raise UserError("malformed packet: an OSC message without type tags")
    values: list[Value] = []
    for tag in tags[1:]:
        if tag in _FIXED:
            form, size = _FIXED[tag]
            values.append(struct.unpack_from(form, packet, start)[0])
            start += size
        elif tag in "sS":
            text, start = _text(packet, start)
            values.append(text)
        elif tag == "b":
            (size,) = struct.unpack_from(">i", packet, start)
            if size < 0 or start + 4 + size > len(packet):
                raise IndexError
            values.append(bytes(packet[start + 4 : start + 4 + size]))
            start += 4 + (size + 3) // 4 * 4
        elif tag in _CONSTANT:
            values.append(_CONSTANT[tag])
        else:
            raise UserError(f"malformed packet: unknown OSC type tag {tag!r}")
    return values


def _text(packet: memoryview, start: int) -> tuple[str, int]:
    """Text at ``start`` and the offset after it: zero-terminated and padded to a multiple of four bytes."""
    end = start
    while packet[end]:
        end += 1
    return bytes(packet[start:end]).decode("utf-8"), (end // 4 + 1) * 4
