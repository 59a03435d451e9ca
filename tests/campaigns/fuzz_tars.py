"""Tars to mutate, and mutations of them; a case is the same for the same seed and number."""

import io
import random
import tarfile
from collections.abc import Callable
from functools import cache

from PIL import Image

from tests.data.tars import BLOCK, END, header, member, padded, pair, pax, record, resum

Parts = list[bytes]  # a header with its data each


@cache
def picture(red: int) -> bytes:
    """A PNG that every decoder takes; another one for another number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (red % 256, 99, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def _by_tarfile(form: int) -> Parts:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for i in range(3):
            folder = "a/long/folder/" * (5 * i)
            for extension, data in (("png", picture(i)), ("txt", b"tarfile %d" % i)):
                info = tarfile.TarInfo(f"{folder}é{i}.{extension}")
                info.size = len(data)
                info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(data))
    return cut(buffer.getvalue())


def cut(data: bytes) -> Parts:
    """A sane tar in parts, without its end."""
    parts, at = [], 0
    while any(data[at : at + BLOCK]):
        size = int(data[at + 124 : at + 135], 8)
        behind = at + BLOCK + -(-size // BLOCK) * BLOCK
        parts.append(data[at:behind])
        at = behind
    return parts


def plain(count: int = 4) -> Parts:
    """Pairs as most tools write them."""
    return cut(b"".join(pair(f"{i:03d}", f"a picture {i}", picture(i)) for i in range(count)) + END)


@cache
def bases() -> tuple[Parts, ...]:
    """Sane tars of many forms."""
    repeated = cut(pair("a", "one", picture(1)) * 2 + pair("a", "two", picture(2)) + END)
    linked = [
        *plain(2),
        header("b.png", 0, b"1", at_157=b"000.jpg"),
        member("b.txt", b"a link"),
        header("c.png", 0, b"2", at_157=b"001.jpg"),
        header("folder/", 0, b"5"),
    ]
    headed = [
        pax(record(b"comment", b"of all"), kind=b"g"),
        pax(record(b"path", b"x/one.png"), record(b"size", b"%d" % len(picture(7)))),
        header("short.png"), padded(picture(7)),
        member("x/one.txt", b"a pax name"),
        member("@LongLink", b"y/" * 60 + b"two.png\0", b"L"),
        member("cut.png", picture(8)),
        member("@LongLink", b"y/" * 60 + b"two.txt\0", b"L"),
        member("cut.txt", b"a long name"),
    ]  # fmt: skip
    headed[2:4] = [headed[2] + headed[3]]
    mixed = [
        member("a.png", picture(3)), member("a.json", b"{}"), member("a.txt", b"three"),
        member("._a.png", b"mac"), member("README", b"none"), member("b.PNG", picture(4)),
        member("b.jpg", picture(5)), member("b.TXT", b"two images"), member("c.png", picture(6)),
    ]  # fmt: skip
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return plain(), plain(1), repeated, linked, headed, mixed, *map(_by_tarfile, forms)


SIZES = (
    b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"\x80" + b"\xff" * 11, b"\x80" + bytes(10) + b"\5",
    b"-0000000001\0", b"00000001000\0", b"00000000777\0", b"77777777777\0", b"000000000 5\0",
    b"  hello    \0", b"           \0", bytes(12), b"0o000000005\0", b"+0000000005\0",
    b"5" + bytes(11), b"00000_00001\0", b"99999999999\0", b"\x81" + bytes(11),
    b"\xff" + bytes(11), b"00000001001\0", b"-0000001000\0", b"-0000002000\0", b"-0000010000\0",
)  # fmt: skip
NAMES = (
    b"", b"/", b"a", b"a/", b".", "é東.png".encode(), b"\xff\xfe.png",
    b"\x1b[31mred.png", b"a.b.c.png",
    b"._000.png", b"PaxHeaders.1/000.jpg", b"000.jpg", b"000.txt", b"001.jpg", b"000.PNG",
    b"x" * 100,
    b"../../x.png", b"new\nline.png", b"tab\t.txt", b"%41.png", b"a b.png", b"000.", b"../000.txt",
)  # fmt: skip
RECORDS = (
    b"0 path=z.png\n", b"5 path=z.png\n", b"15 path=zz.png\n", b"99999 path=z.png\n",
    b"-1 path=z\n",
    b"99999999999999999999 size=1\n", b"x path=z\n", b"12 size=-512\n", b"words", b"", b"\0" * 600,
    record(b"size", b"-512"), record(b"size", b"-1024"), record(b"size", b"-4096"),
    record(b"size", b"-1"), record(b"size", b"0"), record(b"size", b"512"), record(b"size", b"1e9"),
    record(b"size", b"99999999999999"), record(b"path", b""), record(b"path", b"p/q.png"),
    record(b"path", b"000.txt"), record(b"path", b"a\0b.png"), record(b"pa\0th", b"z.png"),
    record(b"path", b"dir/"), record(b"path", b"\xff\xfe.png"), record(b"linkpath", b"000.jpg"),
    record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.name", b"z.png"),
    record(b"path", b"q.png") + record(b"path", b"r.png"), record(b"c", b"x") * 300,
    record(b"hdrcharset", b"BINARY") + record(b"path", b"\xe9.png"), record(b"mtime", b"soon"),
    record(b"size", "٣".encode()), record(b"size", b"0x10"), record(b" path", b"z"),
)  # fmt: skip


def _pick(parts: Parts, chance: random.Random) -> int:
    return chance.randrange(len(parts))


def _edit(parts: Parts, chance: random.Random, start: int, value: bytes, sign: bool = True) -> None:
    at = _pick(parts, chance)
    head = bytearray(parts[at][:BLOCK])
    head[start : start + len(value)] = value
    parts[at] = (resum(head) if sign else bytes(head)) + parts[at][BLOCK:]


def _flip(parts: Parts, chance: random.Random, sign: bool) -> None:
    at = _pick(parts, chance)
    head = bytearray(parts[at][:BLOCK])
    for _ in range(chance.randint(1, 3)):
        head[chance.randrange(BLOCK)] ^= 1 << chance.randrange(8)
    parts[at] = (resum(head, chance.random() < 0.1) if sign else bytes(head)) + parts[at][BLOCK:]


def flip_signed(parts: Parts, chance: random.Random) -> None:
    """Bits of a header, its checksum made anew."""
    _flip(parts, chance, True)


def flip_unsigned(parts: Parts, chance: random.Random) -> None:
    """Bits of a header, with the old checksum."""
    _flip(parts, chance, False)


def change_size(parts: Parts, chance: random.Random) -> None:
    """A size that is negative, none, huge, or of other bytes."""
    value = chance.choice([*SIZES, b"%011o\0" % chance.choice([1, 511, 512, 513, 1024, 1 << 20])])
    _edit(parts, chance, 124, value)


def change_number(parts: Parts, chance: random.Random) -> None:
    """Mode, owner, time or device numbers."""
    start, length = chance.choice([(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)])
    _edit(parts, chance, start, chance.choice(SIZES)[:length])


def change_kind(parts: Parts, chance: random.Random) -> None:
    """The kind of a member."""
    _edit(parts, chance, 156, bytes([chance.choice(b"01234567xgLKSMVDNXA\0Q \xff")]))


def change_name(parts: Parts, chance: random.Random) -> None:
    """A name, a target or a prefix."""
    start, length = chance.choice([(0, 100), (0, 100), (157, 100), (345, 155)])
    _edit(parts, chance, start, chance.choice(NAMES).ljust(length, b"\0")[:length])


def change_magic(parts: Parts, chance: random.Random) -> None:
    """What tells the form of a header."""
    magics = (b"ustar\00000", b"ustar  \0", bytes(8), b"ustar 00", b"USTAR\00000", b"ustar\0\0\0")
    _edit(parts, chance, 257, chance.choice(magics))


def insert_pax(parts: Parts, chance: random.Random) -> None:
    """Pax headers with records that are odd."""
    records = b"".join(chance.choices(RECORDS, k=chance.randint(1, 3)))
    parts.insert(_pick(parts, chance), pax(records, kind=chance.choice([b"x", b"x", b"g", b"X"])))


def change_pax(parts: Parts, chance: random.Random) -> None:
    """A byte of a body: of pax records, names or data."""
    at = _pick(parts, chance)
    body = bytearray(parts[at][BLOCK:])
    for _ in range(chance.randint(1, 3) if body else 0):
        body[chance.randrange(min(len(body), 80))] = chance.randrange(256)
    parts[at] = parts[at][:BLOCK] + bytes(body)


def insert_long(parts: Parts, chance: random.Random) -> None:
    """GNU's long names, of sizes that are true or not."""
    body = chance.choice([*NAMES, b"n" * 5000 + b".png"]) + chance.choice([b"", b"\0"])
    size = chance.choice([len(body), len(body), 1 << 31, 0, len(body) + 512])
    kind = chance.choice([b"L", b"K"])
    parts.insert(_pick(parts, chance), header("@LongLink", size, kind) + padded(body))


def insert_link(parts: Parts, chance: random.Random) -> None:
    """Links to what is there, and to what is not."""
    link = header(
        chance.choice(NAMES), chance.choice([0, 0, 5]), chance.choice([b"1", b"2"]),
        at_157=chance.choice([*NAMES, b"./000.jpg", b"000.jpg"])[:100],
    )  # fmt: skip
    parts.insert(_pick(parts, chance), link)


def drop_part(parts: Parts, chance: random.Random) -> None:
    """A member is gone."""
    if len(parts) > 1:
        del parts[_pick(parts, chance)]


def double_part(parts: Parts, chance: random.Random) -> None:
    """A member is there twice."""
    parts.insert(_pick(parts, chance), parts[_pick(parts, chance)])


def swap_parts(parts: Parts, chance: random.Random) -> None:
    """Two members change places."""
    i, j = _pick(parts, chance), _pick(parts, chance)
    parts[i], parts[j] = parts[j], parts[i]


def insert_blank(parts: Parts, chance: random.Random) -> None:
    """Blocks of zeros between members."""
    parts.insert(_pick(parts, chance), bytes(BLOCK * chance.randint(1, 3)))


def insert_garbage(parts: Parts, chance: random.Random) -> None:
    """Bytes that are nothing, between members."""
    parts.insert(_pick(parts, chance), chance.randbytes(chance.choice([1, 100, BLOCK, 2 * BLOCK])))


PART_MUTATIONS: dict[str, Callable[[Parts, random.Random], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        flip_signed, flip_unsigned, change_size, change_number, change_kind, change_name,
        change_magic, insert_pax, change_pax, insert_long, insert_link, drop_part, double_part,
        swap_parts, insert_blank, insert_garbage,
    )
}  # fmt: skip


def truncate(data: bytes, chance: random.Random) -> bytes:
    """The file ends early."""
    if chance.random() < 0.5:
        return data[: chance.randrange(len(data))]
    return data[: BLOCK * chance.randrange(len(data) // BLOCK + 1)]


def join(data: bytes, chance: random.Random) -> bytes:
    """Another archive, or bytes that are none, behind it."""
    other = b"".join(chance.choice(bases())) + END
    between = chance.choice([b"", b"", bytes(BLOCK), bytes(9000), b"x", chance.randbytes(700)])
    return data + between + chance.choice([other, other, chance.randbytes(900), other[:700]])


def shuffle_blocks(data: bytes, chance: random.Random) -> bytes:
    """A block is lost, doubled, moved or overwritten."""
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]
    i, j = chance.randrange(len(blocks)), chance.randrange(len(blocks))
    what = chance.randrange(4)
    if what == 0:
        del blocks[i]
    elif what == 1:
        blocks.insert(i, blocks[j])
    elif what == 2:
        blocks[i], blocks[j] = blocks[j], blocks[i]
    else:
        blocks[i] = chance.choice([bytes(BLOCK), b"\xff" * BLOCK, chance.randbytes(BLOCK)])
    return b"".join(blocks)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """Bytes anywhere."""
    made = bytearray(data)
    at = chance.randrange(len(made))
    made[at : at + 9] = chance.randbytes(9)[: len(made) - at]
    return bytes(made)


WHOLE_MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    function.__name__.replace("_", " "): function
    for function in (truncate, join, shuffle_blocks, overwrite)
}


def mutated(chance: random.Random) -> tuple[str, bytes]:
    """A tar and what was done to it last."""
    parts = list(chance.choice(bases()))
    names = [*PART_MUTATIONS, *WHOLE_MUTATIONS]
    name = chance.choice(names)
    for before in chance.choices(list(PART_MUTATIONS), k=chance.choice([0, 0, 0, 1])):
        PART_MUTATIONS[before](parts, chance)
    if name in PART_MUTATIONS:
        PART_MUTATIONS[name](parts, chance)
    data = b"".join(parts) + chance.choice([END, END, END, bytes(BLOCK), b""])
    return name, WHOLE_MUTATIONS[name](data, chance) if name in WHOLE_MUTATIONS else data
