"""Ways to damage bytes, JSON, safetensors files and text, each drawn from a generator that is given."""

import gzip
import json
import random
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cache
from typing import Any

import zstandard

Change = Callable[[bytes, random.Random], bytes]
DEPTHS = (50, 300, 800, 960, 990, 1500, 20_000, 100_000)  # of nesting; Python's own limit is 1,000 calls


def nested(depth: int, kind: str = "list") -> str:
    """JSON, or TOML, of so many lists or objects, one in the other."""
    return '{"a":' * depth + "1" + "}" * depth if kind == "object" else "[" * depth + "]" * depth


# -- bytes ---------------------------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits the other way."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def early_flip(data: bytes, rng: random.Random) -> bytes:
    """Bits of the first kilobyte, where headers are."""
    return flip(data[:1024], rng) + data[1024:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone; most often it ends early, or late."""
    return data[: rng.choice([rng.randrange(len(data) + 1), rng.randrange(16), max(0, len(data) - rng.randrange(16))])]


def extend(data: bytes, rng: random.Random) -> bytes:
    """More behind it."""
    return data + rng.choice([b"\0", b"\n", b"}", rng.randbytes(rng.randint(1, 64)), data])


def cut_out(data: bytes, rng: random.Random) -> bytes:
    """A stretch is missing."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 64) :]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A stretch is something else: random, zeros, ones, or a number that is huge as a length."""
    size = rng.choice([1, 2, 4, 8, 32])
    other = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size, struct.pack("<Q", 1 << rng.randint(20, 63))])
    at = rng.randrange(len(data) + 1)
    return data[:at] + other + data[at + len(other) :]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two stretches change places."""
    if len(data) < 4:
        return data[::-1]
    a, b, c = sorted(rng.sample(range(len(data) + 1), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def empty(data: bytes, rng: random.Random) -> bytes:
    """Nothing, or as many zeros."""
    return rng.choice([b"", bytes(len(data))])


BYTES: tuple[Change, ...] = (flip, early_flip, truncate, extend, cut_out, overwrite, swap, empty)

# -- JSON ----------------------------------------------------------------------------------------------------------


# What json does not write: numbers of very many digits, and nesting.
RAW = ["9" * 4000, "9" * 5000, "1e999", "-0", *(nested(depth, kind) for depth in DEPTHS for kind in ("list", "object"))]
ODD: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", " ", 0, -1, 1, 2, 0.5, -0.0, 1e308, 2**31, 2**32, 2**63, 2**64, -(2**63)),
    *(10**12, 10**30, 10**400, float("nan"), float("inf"), -float("inf"), "x" * 100_000, "\0", "a\nb", "\x1b[31m"),
    *("\u2028", "\ud800", "../../outside", "/etc/hostname", "..", ".", "~", "C:\\x", [None], [[]], {"": None}),
    *([1, 2, 3], ["x"] * 1000, {"a": {"b": []}}, "(a+)+$", "(.*)*x"),
    *(f"RAW:{number}" for number in range(len(RAW))),
)


def odd_value(rng: random.Random) -> Any:
    """What hardly a field can mean; a copy, since it may be changed in its turn."""
    return deepcopy(rng.choice(ODD))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if len(path) > 20:  # nested before
        return found
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = list(enumerate(value))[:20] if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def change_json(data: bytes, rng: random.Random) -> bytes:
    """JSON with one to three of its values, keys or types changed."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # it was damaged before
        return flip(data, rng)
    for _ in range(rng.randint(1, 3)):
        value = _change(value, rng)
    try:
        return dump_raw(value)
    except RecursionError:
        return data


def _change(value: Any, rng: random.Random) -> Any:
    path = rng.choice(_places(value))
    if not path:
        return odd_value(rng) if rng.random() < 0.3 else value
    *before, key = path
    holder = value
    for step in before:
        holder = holder[step]
    what = rng.randrange(6)
    if what == 0 and isinstance(holder, dict):
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(["", key + "x", "../" + key, "a\nb", "__class__", "x" * 5000])] = holder.pop(key)
    elif what == 2:
        others = _places(value)
        with suppress(RecursionError):
            holder[key] = deepcopy(_at(value, rng.choice(others)))
    elif what == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        n = holder[key]
        holder[key] = rng.choice([n + 1, n - 1, -n, n * 2, n * 10**9, str(n), [n]])
    else:
        holder[key] = odd_value(rng)
    return value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def dump_raw(value: Any) -> bytes:
    """JSON, with what stands in RAW in the places that are marked for it."""
    return re.sub(r'"RAW:(\d+)"', lambda found: RAW[int(found[1])], json.dumps(value)).encode()


def other_json(data: bytes, rng: random.Random) -> bytes:
    """Something that is JSON, or nearly, whatever stood there."""
    depth = rng.choice(DEPTHS)
    plain = [b"null", b"[]", b"{}", b"3", b'"x"', b"true", b"NaN", b"", b"{", b"9" * 5000, b'{"files": 1}']
    deep = [nested(depth).encode(), nested(depth, "object").encode(), b"[" * depth, b'{"a":' * depth]
    coded = [b"\xef\xbb\xbf" + data, b"\xff\xfe" + data, data.decode(errors="replace").encode("utf-16")]
    return rng.choice([*plain, *deep, *coded, data + data, data[:-2] + b',"a":1,"a":2}'])


JSON: tuple[Change, ...] = (change_json, change_json, change_json, other_json)

# -- safetensors ---------------------------------------------------------------------------------------------------


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A header that lies: of its length, or of a tensor's name, shape, dtype or place."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):  # it was damaged before
        return flip(data, rng)
    if not isinstance(header, dict) or not all(isinstance(told, dict) for told in header.values()):
        return flip(data, rng)
    body = data[8 + size :]
    if rng.random() < 0.2:
        lie = rng.choice([0, 1, size - 1, size + 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001])
        return lie.to_bytes(8, "little") + data[8:]
    names = [name for name in header if "shape" in header[name]]
    if not names:
        return flip(data, rng)
    name = rng.choice(names)
    told = header[name]
    match rng.randrange(12):
        case 0:
            told["shape"] = rng.choice(
                [[], [0], [2**63], [2**32, 2**32], told["shape"][::-1], [*told["shape"], 1], [-1]]
            )
        case 1:  # nothing is stored, and much is promised
            told |= {"shape": rng.choice([[10**12, 0], [0, 10**12], [0]]), "data_offsets": [0, 0]}
        case 2:
            told["dtype"] = rng.choice(["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "", 3])
        case 3:
            told["data_offsets"] = rng.choice([[0, 0], [0, len(body)], [4, 8], [-4, 0], [0, 2**63], [8, 4], [0], "x"])
        case 4:
            header[rng.choice(["x", "", "../x", "a\nb", "x" * 9000, names[0] + ".weight"])] = header.pop(name)
        case 5:
            del header[name]
        case 6:
            header["extra.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
        case 7:
            header["classifier.weight"] = {
                "dtype": "F32",
                "shape": rng.choice([[], [10**9, 0], [2**40, 0], [0, 4]]),
                "data_offsets": [len(body), len(body)],
            }
        case 8:
            header["__metadata__"] = rng.choice([3, [], {"a": 3}, {"format": "x" * 100_000}, "x", {"format": None}])
        case 9:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        case 10:
            header[name] = odd_value(rng)
        case _:
            header = odd_value(rng)
    text = dump_raw(header)
    return len(text).to_bytes(8, "little") + text + body


SAFETENSORS: tuple[Change, ...] = (change_safetensors, change_safetensors, change_safetensors, early_flip, flip)

# -- text ----------------------------------------------------------------------------------------------------------

BAD_TEXT = (
    *(b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xef\xbb\xbf", b"\x1b[2J", b"\xf4\x90\x80\x80"),
    *(
        b'"',
        b'""',
        b"'",
        b"\t",
        b"\t\t",
        b",",
        b"\\",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\n\r",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\x85",
    ),
    *("\u2028".encode(), "\u2029".encode(), "\u0085".encode(), "\u200b".encode(), "\U0010ffff".encode(), b" ", b"\n"),
    *(
        b"-DOCSTART-",
        b"B-",
        b"I-X",
        b"E-X",
        b"S-X",
        b"O",
        b"<s>",
        b"[MASK]",
        b"nan",
        b"1e999",
        b"0.5",
        b"text\tlabel\n",
    ),
)


def put_in(data: bytes, rng: random.Random) -> bytes:
    """Signs that mean something, or nothing, at one to three places."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(BAD_TEXT) * rng.choice([1, 1, 2, 50]) + data[at:]
    return data


def long_field(data: bytes, rng: random.Random) -> bytes:
    """A field, or a line, that is very long."""
    at = rng.randrange(len(data) + 1)
    unit = rng.choice([b"x", b"ab ", b"\t", b'"', "é".encode(), b"x,", b" "])
    return data[:at] + unit * rng.choice([1000, 20_000, 140_000]) + data[at:]


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Lines that are gone, doubled, in another order, blank, or end in other ways."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            rng.shuffle(lines)
        case 3:
            lines.insert(at, rng.choice([b"", b" ", b"\t", b"\r", "\u3000".encode(), b"\0"]))
        case 4:
            lines = [line + rng.choice([b"", b"\r", b" "]) for line in lines]
        case 5:
            return rng.choice([b"\r\n", b"\r", b"\0", b" "]).join(lines)
        case _:
            lines = [lines[at]] * rng.choice([1, 3, 500])
    return b"\n".join(lines)


def change_row(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON lines, changed as JSON is."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = rng.choice(JSON)(lines[at], rng)
    return b"\n".join(lines)


TEXT: tuple[Change, ...] = (put_in, put_in, long_field, change_lines, flip, truncate, overwrite, swap, empty)

# -- packed files --------------------------------------------------------------------------------------------------


def pack(data: bytes, suffix: str) -> bytes:
    """Bytes as a file of that suffix holds them."""
    if suffix.endswith(".gz"):
        return gzip.compress(data, 1)
    return zstandard.ZstdCompressor().compress(data) if suffix.endswith(".zst") else data


@cache
def bomb(suffix: str, unit: bytes, mebibytes: int) -> bytes:
    """A small file that unpacks to so much of one thing, again and again; packed files may be joined."""
    part = pack(unit * ((16 << 20) // len(unit)), suffix)
    return part * (mebibytes // 16)


def change_packed(data: bytes, rng: random.Random, suffix: str) -> bytes:
    """A packed file that is cut, joined with other things, or damaged."""
    other = {
        ".gz": b"\x1f\x8b\x08\x08\0\0\0\0\0\xff../../evil\0\x03\0\0\0\0\0\0\0\0\0",
        ".zst": b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    }
    change = rng.choice([truncate, flip, early_flip, extend, cut_out, overwrite, empty, None, None])
    if change is not None:
        return change(data, rng)
    window = b"\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00"  # zstd: a frame that asks for a window of 4 TiB
    return rng.choice(
        [data + data, other[suffix] + data, data + other[suffix], window, data + b"junk", data[:20] * 1000]
    )
