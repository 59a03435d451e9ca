"""Mutations of the index of a tar, and of the tar below an index that stays."""

import random
import re
from collections.abc import Callable

Lines = list[bytes]  # the first line and one for each sample

NUMBERS = (
    b"0", b"-1", b"-512", b"511", b"512", b"1024", b"1536", b"2048", b"3072", b"4096", b"99999999",
    b"9223372036854775807", b"9223372036854775296", b"18446744073709551616", b"1e3", b"0x200",
    b"+512", b"5_12", b"", b"nan", b"\xd9\xa3", b"7" * 5000,
)  # fmt: skip


def _line(lines: Lines, chance: random.Random) -> int:
    return chance.randrange(1, len(lines)) if len(lines) > 1 else 0


def change_number(lines: Lines, chance: random.Random) -> None:
    """An offset or a size becomes another one, or no number."""
    at = _line(lines, chance)
    words = lines[at].split(b" ")
    place = chance.choice([1, 2, 5, 6]) % len(words)
    near = words[place].isdigit() and chance.random() < 0.5
    step = chance.choice([-1024, -512, -1, 1, 512, 1024, 1 << 32])
    words[place] = b"%d" % (int(words[place]) + step) if near else chance.choice(NUMBERS)
    lines[at] = b" ".join(words)


def change_word(lines: Lines, chance: random.Random) -> None:
    """An extension or a name becomes another one."""
    at = _line(lines, chance)
    words = lines[at].split(b" ")
    other = chance.choice(lines[chance.randrange(len(lines))].split(b" "))
    others = [other, b"png", b"jpg", b"txt", b"json", b"\xff", b"\x1b[2J", b"", b"001.jpg", b"a b"]
    words[chance.choice([0, 3, 4, 7]) % len(words)] = chance.choice(others)
    lines[at] = b" ".join(words)


def mix_lines(lines: Lines, chance: random.Random) -> None:
    """The caption, or the place of it, comes from another line."""
    i, j = _line(lines, chance), _line(lines, chance)
    first, second = lines[i].split(b" "), lines[j].split(b" ")
    start = chance.choice([1, 4, 5])
    stop = start + chance.choice([1, 2, 4])
    first[start:stop] = second[start:stop]
    lines[i] = b" ".join(first)


def double_line(lines: Lines, chance: random.Random) -> None:
    """A line is there twice; the count knows of it or does not."""
    lines.insert(_line(lines, chance), lines[_line(lines, chance)])
    _recount(lines, chance)


def drop_line(lines: Lines, chance: random.Random) -> None:
    """A line is gone; the count knows of it or does not."""
    del lines[_line(lines, chance)]
    _recount(lines, chance)


def replace_line(lines: Lines, chance: random.Random) -> None:
    """A line stands in another's place."""
    lines[_line(lines, chance)] = lines[_line(lines, chance)]


def swap_lines(lines: Lines, chance: random.Random) -> None:
    """Two lines change places."""
    i, j = _line(lines, chance), _line(lines, chance)
    lines[i], lines[j] = lines[j], lines[i]


def change_first_line(lines: Lines, chance: random.Random) -> None:
    """Version, count or mark."""
    if lines:
        words = lines[0].split(b" ")
        place = chance.randrange(len(words))
        old = words[place]
        words[place] = chance.choice(
            [*NUMBERS, b"v1.1", b"v1.3", b"v9", old[:-1], old[::-1], old + b" x", b"2" + old[1:]]
        )
        lines[0] = b" ".join(words)


def insert_line(lines: Lines, chance: random.Random) -> None:
    """Lines that are blank, long or nothing."""
    odd = [
        b"",
        b" ",
        b"\t",
        b"# a remark",
        b"\xff\xfe\0",
        b"jpg " * 3000,
        b"jpg 512 5 x",
        b"\x1b[2J",
    ]
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(odd))


def _recount(lines: Lines, chance: random.Random) -> None:
    if lines and chance.random() < 0.5:
        lines[0] = re.sub(rb"^(v1.2) \d+", rb"\1 %d" % (len(lines) - 1), lines[0])


LINE_MUTATIONS: dict[str, Callable[[Lines, random.Random], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        change_number, change_word, mix_lines, double_line, drop_line, replace_line, swap_lines,
        change_first_line, insert_line,
    )
}  # fmt: skip


def truncate(text: bytes, chance: random.Random) -> bytes:
    """The file ends early."""
    return text[: chance.randrange(len(text))]


def flip(text: bytes, chance: random.Random) -> bytes:
    """Bits anywhere."""
    made = bytearray(text)
    for _ in range(chance.randint(1, 3)):
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def line_ends(text: bytes, chance: random.Random) -> bytes:
    """Other ends of lines, a mark of byte order, another code."""
    forms = (text.replace(b"\n", b"\r\n"), text.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + text)
    return chance.choice([*forms, text.decode("latin-1").encode("utf-16"), text + text, text * 40])


TEXT_MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    function.__name__.replace("_", " "): function for function in (truncate, flip, line_ends)
}


def unmarked(text: bytes) -> bytes:
    """An index as another program, or version 0.1, writes it."""
    return re.sub(rb"^(v1\.2 \d+)[^\n]*", rb"\1", text)


def mutated(text: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Another index, and what was done to it last."""
    name = chance.choice([*LINE_MUTATIONS, *TEXT_MUTATIONS])
    lines = text.removesuffix(b"\n").split(b"\n")
    for before in chance.choices(list(LINE_MUTATIONS), k=chance.choice([0, 0, 0, 1])):
        LINE_MUTATIONS[before](lines, chance)
    if name in LINE_MUTATIONS:
        LINE_MUTATIONS[name](lines, chance)
    made = b"\n".join(lines) + b"\n"
    return name, TEXT_MUTATIONS[name](made, chance) if name in TEXT_MUTATIONS else made
