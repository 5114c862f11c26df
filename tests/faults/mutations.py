"""Mutations: ways to damage a file, by its bytes or by what it is made of. Each takes random numbers, and says what it did."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import Any

import yaml

INTEGERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**3, 10**9, 10**18, 2**63, 2**64, 10**90, -(10**9), 0.0, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "nan", "none", "a" * 5000, "\x00", "\ud800", "☃", "../../etc/passwd",
    "/dev/zero", [], {}, [[]], [0], [1, 2, 3, 4, 5, 6, 7], [10**9] * 3, ["x"], {"x": 1}, {"": {}}, [None], [{}], "1:1:1", "1e999",
)  # fmt: skip
Mutation = Callable[[bytes, bytes, Random], tuple[str, bytes]]


# By bytes


def flip(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Flip one to eight bits."""
    changed, places = bytearray(data), [_place(data, rng) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    for place in places:
        changed[place] ^= 1 << rng.randrange(8)
    return f"flip bits at {places}", bytes(changed)


def cut(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Keep the first bytes only."""
    length = rng.choice((0, 1, 8, len(data) - 1, rng.randrange(len(data)), _place(data, rng)))
    return f"cut to {length} bytes", data[: max(0, length)]


def zero(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Overwrite a run with zeros, or with ones."""
    start, length = _place(data, rng), rng.choice((1, 4, 8, 64, 512, 4096))
    fill = rng.choice((b"\x00", b"\xff"))
    part = fill * len(data[start : start + length])
    return f"{len(part)} bytes of {fill!r} at {start}", data[:start] + part + data[start + length :]


def double(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Repeat a block."""
    start, length = _place(data, rng), rng.choice((1, 8, 64, 512, 4096))
    times = rng.choice((1, 1, 2, 50))
    return f"repeat {length} bytes at {start}, {times} times", data[:start] + data[
        start : start + length
    ] * times + data[start:]


def swap(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Exchange two blocks."""
    length = rng.choice((1, 4, 8, 64, 512))
    a, b = sorted((_place(data, rng), _place(data, rng)))
    length = min(length, b - a, len(data) - b)
    changed = data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]
    return f"exchange {length} bytes at {a} and {b}", changed


def insert(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Insert random bytes."""
    start, part = _place(data, rng), rng.randbytes(rng.choice((1, 2, 8, 64, 1000)))
    return f"insert {len(part)} bytes at {start}", data[:start] + part + data[start:]


def drop(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Leave out a block."""
    start, length = _place(data, rng), rng.choice((1, 2, 8, 64, 512))
    return f"leave out {length} bytes at {start}", data[:start] + data[start + length :]


def splice(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """The beginning of this file and the end of another."""
    here, there = _place(data, rng), _place(other, rng) if other else 0
    return f"{here} bytes, then the other file from {there}", data[:here] + other[there:]


def integer(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Write an integer that is often a limit over two, four or eight bytes, most often in the header."""
    size = rng.choice((1, 2, 4, 8))
    start, value = _place(data[: max(1, len(data) - size)], rng), rng.choice(INTEGERS) % (1 << (8 * size))
    order = rng.choice(("little", "big"))
    part = value.to_bytes(size, order)  # type: ignore[arg-type]
    return f"the {size}-byte {order} integer {value} at {start}", data[:start] + part + data[start + size :]


def _place(data: bytes, rng: Random) -> int:
    """A place in the data. Every second one is in the first or last 400 bytes, where headers are."""
    if not data:
        return 0
    return rng.choice((
        rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(min(400, len(data))),
        len(data) - 1 - rng.randrange(min(400, len(data))),
    ))  # fmt: skip


BYTES: tuple[Mutation, ...] = (flip, flip, cut, zero, double, swap, insert, drop, splice, integer, integer)


# By structure


def tree(value: Any, rng: Random) -> tuple[str, Any]:
    """Plain data with one change: a value of another type, a key left out, added, renamed or moved, or deep nesting."""
    value = json.loads(json.dumps(value)) if not isinstance(value, str | int | float | None) else value
    places = list(_places(value, ()))
    path = rng.choice(places)
    parent: Any = value
    for step in path[:-1]:
        parent = parent[step]
    act = rng.choice(("set", "set", "set", "set", "drop", "rename", "add", "move", "deep", "many", "near"))
    if not path:
        return ("another document", rng.choice(VALUES))
    last = path[-1]
    name = ".".join(map(str, path))
    if act == "drop":
        del parent[last]
    elif act == "rename" and isinstance(last, str):
        parent[rng.choice((last + "x", last[:-1], "", last.upper()))] = parent.pop(last)
    elif act == "add" and isinstance(last, str):
        parent["surprise"] = rng.choice(VALUES)
    elif act == "move":
        donor: Any = value
        for step in rng.choice(places):
            donor = donor[step]
        parent[last] = json.loads(json.dumps(donor))
    elif act == "deep":
        nested: Any = parent[last]
        for _ in range(rng.choice((3, 50, 400, 990))):
            nested = [nested] if rng.random() < 0.5 else {"x": nested}
        parent[last] = nested
    elif act == "many":
        parent[last] = [parent[last]] * rng.choice((2, 100, 10_000))
    elif act == "near" and isinstance(parent[last], int | float):
        parent[last] = parent[last] * rng.choice((-1, 2, 1000, 10**9, 0.5)) + rng.choice((0, 1, -1))
    else:
        parent[last] = rng.choice(VALUES)
        act = f"set to {parent[last]!r:.30}"
    return f"{name}: {act}", value


def _places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def as_json(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """JSON with a changed tree, a key given twice, or without an end to its nesting."""
    act = rng.randrange(20)
    if act == 0:
        return "deep nesting", rng.choice((b"[", b'{"a":')) * rng.choice((1000, 100_000, 1_000_000))
    if act == 1:
        text = data.decode()
        start = text.index("{") + 1
        end = text.find(",", start)
        return "a key twice", (text[:start] + text[start : end + 1] + text[start:]).encode()
    if act == 2:
        return "a number of many digits", data.replace(b"1", b"9" * rng.choice((50, 400, 5000)), 1)
    said, value = tree(json.loads(data), rng)
    return said, _text(json.dumps(value))


def as_yaml(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """YAML with a changed tree, with aliases, tags or deep nesting."""
    act = rng.randrange(16)
    if act == 0:
        return "deep nesting", rng.choice((b"[", b"{a: ", b"- ", b"? ")) * rng.choice((100, 1000, 100_000))
    if act == 1:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, rng.choice((3, 12)))]
        return "aliases of aliases", "\n".join(lines).encode() + b"\n" + data
    if act == 2:
        tag = rng.choice(("!!bool maybe", "!!int ''", "!!float x", "!!timestamp x", "!!binary '?'", "!!set {a, b}",
                          "!!python/name:os.system", "!!null x", "!!omap [a: 1]", "2024-13-45", "0o9", "1:1:1", ".nan"))  # fmt: skip
        lines = data.decode().splitlines()
        row = rng.randrange(len(lines))
        lines[row] = lines[row].partition(":")[0] + ": " + tag
        return f"line {row}: {tag}", "\n".join(lines).encode()
    said, value = tree(yaml.safe_load(data), rng)
    return said, _text(yaml.safe_dump(value, allow_unicode=True))


def as_lines(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Text with a changed line or cell."""
    lines = data.decode().splitlines()
    row = rng.randrange(len(lines))
    cells = lines[row].split(",")
    cells[rng.randrange(len(cells))] = str(rng.choice(VALUES))
    lines[row] = ",".join(cells)
    if rng.random() < 0.2:
        lines.insert(row, rng.choice((lines[row], "", "," * 500, '"', "9" * 5000)))
    return f"line {row}", _text("\n".join(lines))


def as_code(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Python with changed tokens, or with deep nesting."""
    text = data.decode()
    act = rng.randrange(6)
    if act == 0:
        return "deep nesting", (
            text + "\nx = " + rng.choice(("(", "[", "-", "not ", "f(")) * rng.choice((50, 5000, 100_000))
        ).encode()
    if act == 1:
        many = rng.choice((100, 3000))
        return "a long sum", (text + "\nnoise = " + " + ".join(["noise"] * many)).encode()
    words = text.split(" ")
    for _ in range(rng.choice((1, 2, 10))):
        words[rng.randrange(len(words))] = rng.choice(
            (*words[:50], "(", ")", ":", "\n", "*", "1e999", "lambda", "await", "\x00", "'")
        )
    return "other words", _text(" ".join(words))


def as_safetensors(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A safetensors file with a changed header of the right length."""
    end = 8 + int.from_bytes(data[:8], "little")
    said, header = tree(json.loads(data[8:end]), rng)
    text = _text(json.dumps(header))
    length = len(text) if rng.random() < 0.9 else rng.choice(INTEGERS)
    return f"header: {said}", length.to_bytes(8, "little") + text + data[end:]


def as_zip(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A zip file with right checksums: a member changed, packed, doubled, renamed or left out."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    act = rng.choice(("bytes", "bytes", "bytes", "pack", "twice", "name", "drop", "order", "bomb"))
    row = rng.randrange(len(members))
    name, content = members[row]
    packing = zipfile.ZIP_STORED
    if act == "bytes" and content:
        said, content = rng.choice(BYTES)(content, members[rng.randrange(len(members))][1], rng)
        members[row], act = (name, content), f"{name}: {said}"
    elif act == "pack":
        packing = zipfile.ZIP_DEFLATED
    elif act == "twice":
        members.append((name, members[rng.randrange(len(members))][1]))
    elif act == "name":
        members[row] = (rng.choice((name + "x", "../" + name, "", members[rng.randrange(len(members))][0])), content)
    elif act == "drop":
        del members[row]
    elif act == "order":
        rng.shuffle(members)
    elif act == "bomb":
        packing = zipfile.ZIP_DEFLATED
        members[row] = (name, content + bytes(1 << 24))
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return f"member {row}: {act}", packed.getvalue()


def as_png(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A PNG with right checksums: a changed chunk, such as its size, or chunks left out, doubled or in another order."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    act = rng.choice(("header", "header", "bytes", "twice", "drop", "order", "pixels"))
    row = 0 if act == "header" else rng.randrange(len(chunks))
    kind, content = chunks[row]
    if act in ("header", "bytes") and content:
        said, content = rng.choice((flip, integer, integer))(content, content, rng)
        chunks[row], act = (kind, content), f"{act}: {said}"
    elif act == "twice":
        chunks.insert(row, chunks[row])
    elif act == "drop":
        del chunks[row]
    elif act == "order":
        rng.shuffle(chunks)
    elif act == "pixels":
        chunks = [
            (k, zlib.compress(bytes(rng.choice((0, 10, 1 << 24))))) if k == b"IDAT" else (k, c) for k, c in chunks
        ]
    written = data[:8]
    for kind, content in chunks:
        written += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return f"chunk {row}: {act}", written


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
