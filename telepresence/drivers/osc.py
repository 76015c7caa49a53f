"""Parser of Open Sound Control 1.0 (OSC) packets: messages and bundles, from untrusted bytes."""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from insta_runtime.errors import UserError

Value = float | int | str | bytes | bool | None
"""Argument of an OSC message."""

MESSAGES: Final = 1024
"""Maximum number of messages that are returned from one packet; a packet with more is refused."""

_FIXED: Final = {"i": (">i", 4), "f": (">f", 4), "h": (">q", 8), "d": (">d", 8), "t": (">Q", 8), "r": (">I", 4)}
_CONSTANT: Final[dict[str, bool | float | None]] = {"T": True, "F": False, "N": None, "I": float("inf")}


@dataclass(frozen=True)
class OscMessage:
    """An OSC message: address and arguments; ``fault`` is the reason why they cannot be read, else None.

    The address is empty where a bundle is truncated.
    """

    address: str
    values: tuple[Value, ...]
    fault: str | None = None


def parse_packet(packet: bytes, addresses: Container[str]) -> list[OscMessage]:
    """Parse those messages of ``packet`` whose address is in ``addresses``; bundles are flattened in order.

    Other messages, elements without an address, bytes after the last element of a bundle, and time tags are skipped.
    A message whose arguments cannot be read, and a truncated bundle, have a ``fault``.

    Raises:
        UserError: the packet is not OSC, or has more than `MESSAGES` messages to ``addresses``.
    """
    whole, found = memoryview(packet), []
    left = [whole]  # a list instead of recursion: nothing limits the depth of bundles
    while left:
        element = left.pop()
        if bytes(element[:8]) == b"#bundle\0":
            elements, truncated = _elements(element)
            left.extend(reversed(elements))
            if truncated:
                found.append(OscMessage("", (), "malformed packet: an OSC bundle is truncated"))
            continue
        try:
            address, start = _text(element, 0)
        except (UnicodeDecodeError, IndexError):
            address, start = "", 0
        if element is whole and not address.startswith("/"):
            raise UserError("malformed packet: not OSC, or truncated")
        if address in addresses:
            found.append(_message(address, element, start))
        if len(found) > MESSAGES:
            raise UserError(f"malformed packet: more than {MESSAGES} OSC messages")
    return found


def _elements(bundle: memoryview) -> tuple[list[memoryview], bool]:
    """The elements of a bundle that are not empty, and whether its last one is truncated."""
    elements: list[memoryview] = []
    start = 16
    if len(bundle) < start:
        return [], True
    while start + 4 <= len(bundle):
        (size,) = struct.unpack_from(">i", bundle, start)
        start += 4
        if size < 0 or start + size > len(bundle):
            return elements, True
        if size:
            elements.append(bundle[start : start + size])
        start += size
    return elements, False


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
