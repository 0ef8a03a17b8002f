"""How much memory protobuf text takes once it is parsed: two bytes can declare a message of a hundred."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import ModelProto

MESSAGE_BYTES = 128
TEXT_BYTES = 24
NUMBER_BYTES = 8
LEAST_LOOKED_AT = 2 << 20  # text below is parsed as it is: it takes 64 times its size at worst

_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
_Schema = dict[int, Any]  # by field number: the schema of a message, True for packed numbers


class TooLargeError(ValueError):
    """The text takes more memory than is allowed."""


def parsed_bytes(text: bytes, most: int) -> int:
    """An upper estimate of the memory that a ModelProto parsed from `text` takes; 0 for a small text.

    Raises TooLargeError as soon as it is above `most`, ValueError where `text` is no protobuf.
    """
    if len(text) < LEAST_LOOKED_AT:
        return 0
    try:
        return _walked(text, most)
    except IndexError as error:
        raise ValueError("a number runs past the end") from error


def _walked(text: bytes, most: int) -> int:  # noqa: C901, PLR0912
    # One flat loop: this runs once per field of a graph, of which there may be millions.
    total, waiting = 0, [(0, len(text), _schema())]
    while waiting:
        at, end, schema = waiting.pop()
        while at < end:
            tag, at = number_at(text, at)
            kind = tag & 7
            if kind == 2:
                length, at = number_at(text, at)
                inner = schema.get(tag >> 3)
                if at + length > end:
                    raise ValueError("a field runs past the end of its message")
                if inner is None:
                    total += TEXT_BYTES + length
                elif inner is True:
                    # A number of several bytes has its top bit set in all but the last.
                    total += NUMBER_BYTES * int(np.count_nonzero(np.frombuffer(text, np.uint8, length, at) < 128))
                else:
                    total += MESSAGE_BYTES
                    waiting.append((at, at + length, inner))
                at += length
            else:
                total += NUMBER_BYTES
                if kind == 0:
                    _, at = number_at(text, at)
                elif kind == 5:
                    at += 4
                elif kind == 1:
                    at += 8
                else:
                    raise ValueError("a field of an unknown wire type")
            if total > most:
                raise TooLargeError(f"takes more than {most} bytes in memory")
        if at != end:
            raise ValueError("a field runs past the end of its message")
    return total


def number_at(text: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends; IndexError past the end, ValueError for one of too many bytes."""
    byte = text[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while True:
        at += 1
        byte = text[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


@cache
def _schema() -> _Schema:
    return _schema_of(ModelProto.DESCRIPTOR, {})


def _schema_of(message: Descriptor, made: dict[str, _Schema]) -> _Schema:
    """What each field of a message holds; schemas of graphs hold themselves."""
    if message.full_name in made:
        return made[message.full_name]
    schema = made[message.full_name] = _Schema()
    for field in message.fields:
        if field.message_type is not None:
            schema[field.number] = _schema_of(field.message_type, made)
        elif field.type not in _TEXT:
            schema[field.number] = True
    return schema
