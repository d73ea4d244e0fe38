"""Frames of plain data: the length of a JSON header and of a body, the header, then the raw bytes
of all tensors. No pickle.

Plain data are None, bool, int (64 bits), float, str, ``torch.Tensor`` itself (no subclass), and
lists and dicts of those with text as keys; a number of NumPy's goes as Python's. What comes out of
``unpack`` is always made of exactly these types, whoever wrote the frame.
"""

from __future__ import annotations

import json
import math
import os
import struct

import numpy
import torch

LENGTHS = struct.Struct("<II")
MOST_HEADER, MOST_BODY = 4 << 20, 64 << 20  # bytes
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    )
}
DEEPEST = 20


class NotPlain(TypeError):
    """Something that is not plain data was to be sent."""


class BadFrame(ValueError):
    """Bytes that ``pack`` would never write."""


def pack(thing: object) -> bytes:
    """Raises NotPlain, which names the type that cannot travel."""
    return b"".join(parts(thing))


def parts(thing: object) -> list[bytes | memoryview]:
    """The same without a copy of any tensor."""
    body: list[memoryview] = []
    header = json.dumps(_encode(thing, body, DEEPEST), ensure_ascii=False).encode(
        errors="surrogatepass"
    )
    size = sum(map(len, body))
    if len(header) > MOST_HEADER or size > MOST_BODY:
        raise NotPlain(f"{(len(header) + size) >> 20} MB are too much for an answer")
    return [LENGTHS.pack(len(header), size), header, *body]


def _encode(thing: object, body: list[memoryview], depth: int) -> object:
    if isinstance(thing, numpy.bool_ | numpy.integer | numpy.floating):
        thing = thing.item()
    kind = type(thing)
    if depth == 0:
        raise NotPlain("lists in lists in lists, without end")
    if thing is None or kind in (bool, str):
        return thing
    if kind is int and abs(thing) < 1 << 63:
        return thing
    if kind is float:
        return thing if math.isfinite(thing) else {"float": repr(thing)}
    if kind is list:
        return [_encode(one, body, depth - 1) for one in thing]
    if kind is dict and all(type(key) is str for key in thing):
        return {"dict": [[key, _encode(value, body, depth - 1)] for key, value in thing.items()]}
    if kind is torch.Tensor and thing.layout is torch.strided and str(thing.dtype)[6:] in DTYPES:
        plain = thing.detach().cpu().contiguous()
        if plain.numel():
            row = plain.as_strided((plain.numel(),), (1,))  # a lone number may have any stride
            body.append(memoryview(row.view(torch.uint8).numpy()))
        return {"tensor": [str(thing.dtype)[6:], list(thing.shape)]}
    name = {int: "an integer of more than 64 bits", torch.Tensor: "a tensor of this kind"}.get(
        kind, f"a {kind.__name__}"
    )
    instead = "a tensor" if kind is numpy.ndarray else "tensors, numbers, text, lists or dicts"
    raise NotPlain(f"{name} is not plain data: return {instead}")


def lengths(start: bytes) -> tuple[int, int]:
    """Of header and body, from the first ``LENGTHS.size`` bytes of a frame. Raises BadFrame."""
    header, body = LENGTHS.unpack(start)
    if header > MOST_HEADER or body > MOST_BODY:
        raise BadFrame(
            f"a reply of {(header + body) >> 20} MB, more than {(MOST_HEADER + MOST_BODY) >> 20} MB"
        )
    return header, body


def unpack(header: bytes, body: bytes) -> object:
    """Raises BadFrame, whatever is wrong."""
    try:
        thing, left = _decode(json.loads(header), memoryview(body), DEEPEST)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise BadFrame(f"not a frame: {error}"[:200]) from None
    if len(left):
        raise BadFrame("a body longer than its tensors")
    return thing


def _decode(code: object, body: memoryview, depth: int) -> tuple[object, memoryview]:
    if depth == 0:
        raise BadFrame("nested too deep")
    if type(code) is list:
        things = []
        for one in code:
            thing, body = _decode(one, body, depth - 1)
            things.append(thing)
        return things, body
    if type(code) is not dict:
        if (type(code) is float and not math.isfinite(code)) or (
            type(code) is int and abs(code) >= 1 << 63
        ):
            raise BadFrame("a number that cannot be")
        return code, body
    [(kind, content)] = code.items()
    if kind == "float":
        return float({"nan": "nan", "inf": "inf", "-inf": "-inf"}[content]), body
    if kind == "dict":
        things = {}
        for key, value in content:
            things[str(key)], body = _decode(value, body, depth - 1)
        return things, body
    if kind == "tensor":
        return _tensor(*content, body)
    raise BadFrame(f"nothing is called {kind!r}")


def _tensor(name: str, shape: list[int], body: memoryview) -> tuple[torch.Tensor, memoryview]:
    if len(shape) > 16 or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise BadFrame("a shape that cannot be")
    dtype = DTYPES[name]
    size = math.prod(shape) * dtype.itemsize
    if size > len(body):
        raise BadFrame("a tensor longer than its body")
    if size == 0:
        return torch.empty(shape, dtype=dtype), body
    return torch.frombuffer(bytearray(body[:size]), dtype=dtype).reshape(shape), body[size:]


def send(descriptor: int, thing: object) -> None:
    for part in map(memoryview, parts(thing)):
        while len(part):
            part = part[os.write(descriptor, part) :]


def receive(descriptor: int) -> object:
    """Waits for a whole frame. Raises EOFError when the other end is closed."""
    header, body = lengths(_exactly(descriptor, LENGTHS.size))
    return unpack(_exactly(descriptor, header), _exactly(descriptor, body))


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
