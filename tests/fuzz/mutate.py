"""Damage of every kind: to bytes, to the fields of image headers, to tables, to JSON. All draws
come from the `rng` given."""

import copy
import json
import struct
import zlib

NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    95,
    97,
    127,
    128,
    255,
    256,
    4096,
    20000,
    32767,
    65535,
    65536,
    2**20,
    2**24,
    2**30,
    2**31 - 1,
    2**31,
    2**32 - 1,
]
TAGS = [
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    338,
    339,
    347,
    34665,
]
TEXTS = [
    "",
    " ",
    "0",
    "1",
    "2",
    "-1",
    "1.0",
    "1e5",
    "nan",
    "NA",
    "None",
    "id",
    "label",
    '"',
    '""',
    "a,b",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "\ufeff",
    "é",
    "\u2028",
    "../../etc/passwd",
    "/dev/zero",
    "=1+1",
    "x" * 5000,
    "\ud800",
    "日本",
    "\t",
    ";",
    "#",
    "'",
    "\\",
]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    90,
    96,
    97,
    2**31,
    2**63,
    10**400,
    -(10**30),
    0.5,
    1e308,
    1e-308,
    -0.0,
    "",
    "a",
    "densenet169",
    "vit_h_14",
    "convnext_large",
    "resnet18",
    "x" * 100_000,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [1, 2, 3],
    [0.5] * 3,
    [0] * 100_000,
    {"a": 1},
    [None],
    float("nan"),
    float("inf"),
    -float("inf"),
]


def mutate_bytes(rng, content, others=()):
    """Return `content` with one to eight pieces of damage; `others` are files to splice with."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        place, length = rng.randrange(len(damaged) + 1), rng.choice([1, 1, 2, 4, 8, 64, 1000])
        kind = rng.randrange(9)
        if kind == 0 and damaged:
            damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
        elif kind == 1 and damaged:
            damaged[place % len(damaged)] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            damaged[place:place] = rng.randbytes(length)
        elif kind == 4:
            del damaged[place : place + length]
        elif kind == 5:
            damaged[place:place] = damaged[place : place + length] * rng.choice([1, 1, 2, 50])
        elif kind == 6:
            damaged[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
        elif kind == 7:
            damaged[place : place + length] = bytes([rng.choice([0, 255])]) * length
        elif others:
            other = rng.choice(others)
            damaged = damaged[:place] + other[rng.randrange(len(other) + 1) :]
    return bytes(damaged)


def mutate_tiff(rng, content, others=()):
    """Return a TIFF with one to four fields of its first directory set to odd numbers, or bytes
    damaged."""
    if rng.random() < 0.4 or content[:4] not in (b"II*\0", b"MM\0*"):
        return mutate_bytes(rng, content, others)
    damaged, order = bytearray(content), "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    for _ in range(rng.choice([1, 1, 2, 4])):
        entry, kind = start + 2 + 12 * rng.randrange(count), rng.randrange(7)
        if kind == 0:
            struct.pack_into(f"{order}H", damaged, entry, rng.choice(TAGS))
        elif kind == 1:
            struct.pack_into(f"{order}H", damaged, entry + 2, rng.randrange(20))
        elif kind == 2:
            struct.pack_into(f"{order}I", damaged, entry + 4, rng.choice(NUMBERS))
        elif kind == 3:  # a whole number of a kind that fits, where the value stands
            struct.pack_into(f"{order}HII", damaged, entry + 2, 4, 1, rng.choice(NUMBERS))
        elif kind == 4:
            struct.pack_into(f"{order}HIH", damaged, entry + 2, 3, 1, rng.choice(NUMBERS) % 65536)
        elif kind == 5:
            struct.pack_into(
                f"{order}H",
                damaged,
                start,
                max(0, count + rng.choice([-1, 1, -count, 60000 - count])),
            )
        else:
            next_one = start + 2 + 12 * count
            struct.pack_into(
                f"{order}I",
                damaged,
                rng.choice([4, next_one]),
                rng.choice([start, 0, 8, rng.choice(NUMBERS)]),
            )
    return bytes(damaged)


def mutate_png(rng, content, others=()):
    """Return a PNG with a chunk damaged, doubled, moved or left out, and its checksum made to
    fit."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content, others)
    chunks, place = [], 8
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    name, body = chunks.pop(number := rng.choice([0, 0, rng.randrange(len(chunks))]))
    if name == b"IHDR" and rng.random() < 0.7:
        body = bytearray(body)
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(7)
            body[at * 4 : at * 4 + 4] = (
                struct.pack(">I", rng.choice(NUMBERS)) if at < 2 else body[at * 4 : at * 4 + 4]
            )
            if at >= 2:
                body[6 + at] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
    elif name == b"IDAT" and chunks[-2][0] != b"IDAT" and rng.random() < 0.5:
        pixels = bytearray(zlib.decompress(body))
        pixels[rng.randrange(len(pixels))] = rng.randrange(256)
        body = zlib.compress(bytes(pixels) * rng.choice([1, 1, 2]))
    else:
        body = mutate_bytes(rng, body)
    new = [(name, bytes(body))] * rng.choice([0, 1, 1, 1, 1, 2])
    chunks[(rng.choice([number, rng.randrange(len(chunks) + 1)])) : 0] = new
    if rng.random() < 0.2:
        chunks.insert(
            1,
            (
                rng.choice(
                    [b"tEXt", b"zTXt", b"iCCP", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"eXIf"]
                ),
                rng.randbytes(26),
            ),
        )
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def mutate_jpeg(rng, content, others=()):
    """Return a JPEG with one of its segments damaged, doubled or left out, often the one that holds
    its size."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content, others)
    segments, place = [], 2
    while content[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, place + 2)
        segments.append(content[place : place + 2 + length])
        place += 2 + length
    number = rng.randrange(len(segments))
    if rng.random() < 0.5:
        number = next(
            number for number, segment in enumerate(segments) if segment[1] in (0xC0, 0xC2)
        )
        changed = bytearray(segments[number])
        struct.pack_into(">H", changed, rng.choice([5, 7]), rng.choice(NUMBERS) % 65536)
        if rng.random() < 0.3:
            changed[rng.choice([1, 4, 9, 11])] = rng.choice(
                [0, 1, 2, 3, 4, 8, 12, 0x11, 0x44, 0xC1, 0xC2, 0xC3, 0xC9]
            )
        segments[number] = bytes(changed)
    else:
        segments[number : number + 1] = rng.choice(
            [[], [segments[number]] * 2, [mutate_bytes(rng, segments[number])]]
        )
    return content[:2] + b"".join(segments) + content[place:]


def mutate_csv(rng, content, others=()):
    """Return a table with fields, columns, line ends, quotes or its encoding changed, or bytes
    damaged."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, content, others)
    rows, end = [line.split(",") for line in content.decode().split("\n")[:-1]], "\n"
    for _ in range(rng.choice([1, 1, 2, 3])):
        row, kind = rng.choice([rng.randrange(len(rows)), 0]), rng.randrange(14)
        column = rng.randrange(len(rows[row])) if rows[row] else 0
        if kind <= 2 and rows[row]:
            rows[row][column] = rng.choice(
                [rng.choice(TEXTS), rows[row][column] + rng.choice(TEXTS), f'"{rows[row][column]}"']
            )
        elif kind == 3:
            rows[row].insert(column, rng.choice(TEXTS))
        elif kind == 4 and rows[row]:
            del rows[row][column]
        elif kind == 5:
            rows = [[*row, *row[:1]] if rng.random() < 0.95 else row for row in rows]
        elif kind == 6:
            rows = [[f"{number}", *row] for number, row in enumerate(rows)]
        elif kind == 7:
            rows = [row[::-1] for row in rows]
        elif kind == 8:
            end = rng.choice(["\r\n", "\r", "\n\n", "\n\r"])
        elif kind == 9:
            rows[row:row] = [rows[row]] * rng.choice([1, 1, 30])
        elif kind == 10:
            rows[row] = rows[row] + rng.choice([["a"], [""], ["1"]]) * rng.choice([1, 10, 5000])
        elif kind == 11:
            del rows[row]
        elif kind == 12:
            rows[1:] = sorted(rows[1:], key=lambda row: rng.random())
        else:
            rows[row] = [rng.choice(TEXTS)[:50] * rng.choice([1, 1, 50_000])]
        rows = rows or [[]]
    text, encoding = (
        end.join([*map(",".join, rows), ""]),
        rng.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]),
    )
    return text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")


def mutate_json(rng, content, others=(), values=VALUES):
    """Return a JSON text with values, keys or the nesting changed, keys doubled, or bytes
    damaged."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, content, others)
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        spot = tree
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(spot[key], (dict, list)) and rng.random() < 0.85:
                spot = spot[key]
                continue
            kind = rng.randrange(6)
            if kind == 0:
                del spot[key]
            elif kind == 1 and isinstance(spot, dict):
                spot[rng.choice([*map(str, TEXTS), "__class__", str(key) + " "])] = spot[key]
            elif kind == 2 and isinstance(spot[key], (int, float)):
                spot[key] = rng.choice([-1, 0, 2, 0.5, 1e9]) * spot[key] + rng.choice(
                    [0, 1, -1, 1e-9]
                )
            elif kind == 3:
                spot[key] = copy.deepcopy(
                    rng.choice(
                        [[spot[key]], {"a": spot[key]}, str(spot[key]), spot[rng.choice(keys)]]
                    )
                )
            else:
                # or the next piece of damage would change VALUES
                spot[key] = copy.deepcopy(rng.choice(values))
            break
    text = json.dumps(tree, indent=rng.choice([None, 1]))
    odd = rng.randrange(12)
    if odd == 0:
        name, value = rng.choice(["arch", "format", "dtype", "a"]), json.dumps(rng.choice(values))
        text = text.replace("{", f'{{"{name}": {value}, ', rng.choice([1, 2]))
    elif odd == 1:
        text = rng.choice(["[", '{"a":', "[[", '"']) * rng.choice([10, 1000, 100_000]) + text
    elif odd == 2:
        text = text.replace(
            rng.choice("0123456789"),
            rng.choice(["9" * 5000, "1e999", "0x1", "-", "1" * 30, "\\ud800"]),
            1,
        )
    return text.encode("utf-8", "surrogatepass")


def mutate_weights(rng, weights):
    """Return a weights file with its header, its header's length or, seldom, its numbers
    changed."""
    length = int.from_bytes(weights[:8], "little")
    header, body, kind = weights[8 : 8 + length], weights[8 + length :], rng.random()
    if kind < 0.15:
        wrong = rng.choice(
            [0, 1, 7, length - 1, length + 1, 2**31, 2**62, 2**64 - 1, rng.randrange(2**64)]
        )
        return wrong.to_bytes(8, "little") + weights[8:]
    if kind < 0.25:
        return mutate_bytes(rng, weights)
    ends = [
        [0, 4],
        [4, 0],
        [1, 0],
        [-1, 4],
        [0, 2**63],
        [0, len(body)],
        [2**62] * 4,
        [2**32, 2**32, 0],
    ]
    values = [
        *VALUES,
        *ends,
        {"format": "pt"},
        *["F32", "F16", "F64", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "Q7"],
    ]
    header = mutate_json(rng, header, values=values)
    return len(header).to_bytes(8, "little") + header + body
