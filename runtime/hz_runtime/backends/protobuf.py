"""Fields of protobuf messages, read in place: what is known of ONNX files here without the onnx package.

Knows the wire format alone; field numbers are those of whoever reads (onnx.proto, IR 10).
"""

from __future__ import annotations

from collections.abc import Iterator


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, contents) of one message: a view for length-delimited fields, a number for varints;
    fixed ones are passed over. Raises ValueError or IndexError for bytes that are no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:  # groups (3, 4): not in ONNX
            raise ValueError("unknown wire type")
        if at + length > len(message):
            raise ValueError("cut short")
        if wire == 2:
            yield field, message[at : at + length]
        at += length


def inside(message: memoryview | int, wanted: int) -> Iterator[memoryview]:
    """The contents of every length-delimited field of this number."""
    if isinstance(message, int):
        raise ValueError("not a message")
    for field, value in fields(message):
        if field == wanted and isinstance(value, memoryview):
            yield value


def texts(message: memoryview | int, wanted: int) -> list[str]:
    """The strings in every field of this number."""
    return [bytes(value).decode() for value in inside(message, wanted)]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("varint too long")
