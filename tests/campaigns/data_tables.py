"""Tables as people write, break and join them, with what each row was meant to say."""

import csv
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_WORDS = ["a cat", "two dogs", "été", "写真", 'the "big" house', "red; green", "yes, no", "a\tb",
          "one | two", "it's", "12\" wide", "x" * 300, "👩\u200d👧 family", "line\nend", "CR\r\nLF",
          "'so'", "<b>", "=1+2", "#5", "\x1b[31mred", "a  b"]  # fmt: skip
_JOINS = ['"{} by the sea', '{}"', '"{}" and "{}"', "{}\n{}", "{},{}", "{}\n\n{}", "{}\r{}",
          "{}\t{}", "{};{}"]  # fmt: skip
_PLAIN = ["a cat", "two dogs", "a house by the sea", "the end", "été"]


@dataclass
class Made:
    """A table for packing.

    Attributes:
        name: of its file.
        header: the text before the first row.
        rows: (number, text) of each row, in order; number -1 is no row of ours.
        allowed: captions that are right for each row.
        exact: it is well formed: every row must be packed.
        encoding: that it is written in.
        options: further ones for the packer.
        bytes: change what is written.
    """

    name: str = "t.csv"
    header: str = ""
    rows: list[tuple[int, str]] = field(default_factory=list)
    allowed: dict[int, set[str]] = field(default_factory=dict)
    exact: bool = False
    encoding: str = "utf-8"
    options: list[str] = field(default_factory=list)
    bytes: Callable[[bytes], bytes] = bytes

    def written(self) -> tuple[bytes, dict[int, tuple[int, int]]]:
        """The file, and first and last line of each row, from 1, by a count of its own."""
        text = self.header
        lines = {}
        for number, row in self.rows:
            first = _ends(text) + 1
            text += row
            last = max(first, _ends(text) + (not row.endswith(("\n", "\r"))))
            if number >= 0:
                lines[number] = first, last
        return self.bytes(text.encode(self.encoding, "surrogatepass")), lines


def _ends(text: str) -> int:
    return len(re.findall("\r\n|\r|\n", text))


@dataclass
class _Dialect:
    separator: str = ","
    end: str = "\n"
    quoting: int = csv.QUOTE_MINIMAL
    quote: str = '"'
    escape: bool = False
    order: tuple[str, ...] = ("file", "caption")

    def row(self, cells: dict[str, str]) -> str:
        text = io.StringIO(newline="")
        csv.writer(
            text,
            delimiter=self.separator,
            lineterminator=self.end,
            quoting=self.quoting,
            quotechar=self.quote,
            doublequote=not self.escape,
            escapechar="\\" if self.escape else None,
        ).writerow([cells[name] for name in self.order])
        return text.getvalue()


def _dialect(chance: random.Random) -> _Dialect:
    end = chance.choice(["\n", "\r\n", "\r"])
    # Python leaves line ends bare that are not the table's.
    quoting = csv.QUOTE_ALL if end == "\r" else chance.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    orders = [("file", "caption"), ("caption", "file"), ("id", "file", "caption"),
              ("file", "caption", "note"), ("id", "caption", "file", "note")]  # fmt: skip
    return _Dialect(chance.choice(",\t;|"), end, quoting, order=chance.choice(orders))


def _cells(number: int, caption: str) -> dict[str, str]:
    return {"file": f"{number}.png", "caption": caption, "id": str(100 + number), "note": "ok"}


def _made(chance: random.Random, dialect: _Dialect, words: list[str]) -> Made:
    made = Made(chance.choice(["t.csv", "t.tsv"]))
    made.header = dialect.row({name: name for name in dialect.order})
    for number in range(chance.randint(4, 12)):
        caption = f"{number} {chance.choice(words)}"
        made.allowed[number] = {caption}
        made.rows.append((number, dialect.row(_cells(number, caption))))
    return made


def well_formed(chance: random.Random) -> Made:
    """Any dialect, encoding and name of the columns; every row must come out."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _WORDS)
    made.exact = True
    made.encoding = chance.choice(
        ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
    )
    names = chance.choice([("file", "caption"), (" Image ", "TITLE"), ("FilePath", " text")])
    cells = {"file": names[0], "caption": names[1], "id": "", "note": "Unnamed: 3"}
    made.header = dialect.row({name: cells[name] for name in dialect.order})
    if chance.random() < 0.3:
        made.header = f"sep={dialect.separator}{dialect.end}" + made.header
    made.rows += [(-1, dialect.end)] * chance.randint(0, 3)
    if chance.random() < 0.3:
        made.rows.insert(2, (-1, dialect.end))
    return made


def unquoted(chance: random.Random) -> Made:
    """A script that joins cells without a thought of what they hold."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _WORDS)
    made.header = dialect.separator.join(dialect.order) + dialect.end
    rows = []
    for number, _ in made.rows:
        caption = chance.choice(_WORDS)
        if chance.random() < 0.4:
            caption = chance.choice(_JOINS).replace("{}", caption)
        made.allowed[number] = {caption}
        cells = _cells(number, caption)
        rows.append(
            (number, dialect.separator.join(cells[name] for name in dialect.order) + dialect.end)
        )
    made.rows = rows
    return made


def stray_quote(chance: random.Random) -> Made:
    """A quote too many, at any place."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _PLAIN if chance.random() < 0.7 else _WORDS)
    for place in chance.sample(range(len(made.rows)), chance.randint(1, 3)):
        number, text = made.rows[place]
        body = text.rstrip("\r\n")
        starts = [0, *(m.end() for m in re.finditer(re.escape(dialect.separator), body))]
        at = chance.choice([*starts, *starts, chance.randint(0, len(body)), len(body)])
        made.rows[place] = number, text[:at] + '"' + text[at:]
        # What stands in the file then, if it stands in a cell without quotes.
        made.allowed[number] |= {_caption(made.rows[place][1], dialect)}
    return made


def _caption(text: str, dialect: _Dialect) -> str:
    """The caption of one row, where its quotes are letters."""
    cells = text.rstrip("\r\n").split(dialect.separator)
    at = dialect.order.index("caption")
    return cells[at] if len(cells) == len(dialect.order) and cells[at][:1] != '"' else ""


def lost_character(chance: random.Random) -> Made:
    """A quote, a separator or a line end less."""
    dialect = _dialect(chance)
    dialect.quoting = csv.QUOTE_ALL
    made = _made(chance, dialect, _WORDS)
    for place in chance.sample(range(len(made.rows)), chance.randint(1, 2)):
        number, text = made.rows[place]
        at = chance.choice([m.start() for m in re.finditer('[",;|\t\r\n]', text)])
        left = text[:at] + text[at + 1 :]
        made.rows[place] = number, left
        with_less = [c[:i] + c[i + 1 :] for c in made.allowed[number] for i in range(len(c))]
        # Inside of a caption in quotes a character less cannot be noticed, unless it is a quote.
        made.allowed[number] |= {c for c in with_less if text[at] != '"'}
    return made


def bare_line_end(chance: random.Random) -> Made:
    """A line end in a cell that has no quotes."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _PLAIN)
    end = chance.choice(["\n", "\r\n", "\r", "\n\n", "\n \n"])
    for place in chance.sample(range(len(made.rows)), chance.randint(1, 2)):
        number, _ = made.rows[place]
        caption = f"{number} first{end}then the rest"
        made.allowed[number] = {caption}
        cells = _cells(number, caption)
        made.rows[place] = (
            number,
            dialect.separator.join(cells[name] for name in dialect.order) + dialect.end,
        )
    return made


def short_and_long(chance: random.Random) -> Made:
    """Rows with cells too few or too many."""
    dialect = _dialect(chance)
    dialect.quoting = csv.QUOTE_MINIMAL
    made = _made(chance, dialect, _PLAIN)
    for place in chance.sample(range(len(made.rows)), 2):
        number, text = made.rows[place]
        body = text.rstrip("\r\n")
        cells = body.split(dialect.separator)
        cells = cells[:-1] if chance.random() < 0.5 else [*cells, chance.choice(["", "more"])]
        made.rows[place] = number, dialect.separator.join(cells) + dialect.end
    return made


def joined(chance: random.Random) -> Made:
    """Two tables in one file."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _PLAIN)
    place = chance.randint(1, len(made.rows) - 1)
    names = {name: name for name in dialect.order}
    if chance.random() < 0.3:
        names = {name: name.upper() + " " for name in dialect.order}
    mark = chance.choice(["", "", "\ufeff"])
    if chance.random() < 0.3:
        number, text = made.rows[place - 1]
        made.rows[place - 1] = number, text.rstrip("\r\n")
    made.rows.insert(place, (-1, mark + dialect.row(names)))
    return made


def mixed(chance: random.Random) -> Made:
    """The second half has another line end, separator or order of columns."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _PLAIN)
    other = _Dialect(dialect.separator, dialect.end, dialect.quoting, order=dialect.order)
    kind = chance.choice(["end", "separator", "order"])
    if kind == "end":
        other.end = chance.choice(["\n", "\r\n", "\r"])
    elif kind == "separator":
        other.separator = chance.choice(",\t;|")
    elif len(dialect.order) == 2:
        # With more columns nobody could tell.
        other.order = dialect.order[::-1]
    for place in range(len(made.rows) // 2, len(made.rows)):
        number = made.rows[place][0]
        (caption,) = made.allowed[number]
        made.rows[place] = number, other.row(_cells(number, caption))
    return made


def bad_bytes(chance: random.Random) -> Made:
    """NULs, bytes of another encoding, a file cut short."""
    dialect = _dialect(chance)
    made = _made(chance, dialect, _PLAIN)
    kind = chance.choice(["nul", "cp1252", "gbk", "invalid"])
    if kind in ("cp1252", "gbk"):
        made.encoding = kind
        for number, _ in made.rows:
            caption = (
                f"{number} {chance.choice(['été', 'plain'] if kind == 'cp1252' else ['写真'])}"
            )
            made.allowed[number] = {caption}
            made.rows[number] = number, dialect.row(_cells(number, caption))
        if chance.random() < 0.5:
            made.options, made.exact = ["--encoding", kind], True
        return made
    number, text = made.rows[chance.randrange(len(made.rows))]
    at = chance.randint(1, len(text.rstrip("\r\n")))
    place = len(made.header + "".join(row for _, row in made.rows[:number])) + at
    bad = b"\0" if kind == "nul" else bytes([chance.randint(0x80, 0xFF)])

    def insert(data: bytes) -> bytes:
        at = len(data.decode()[:place].encode())
        return data[:at] + bad + data[at:]

    made.bytes = insert
    return made


def other_rules(chance: random.Random) -> Made:
    """Backslashes for quotes, or single quotes, or no quotes at all."""
    dialect = _dialect(chance)
    dialect.end = chance.choice(["\n", "\r\n"])
    kind = chance.choice(["escape", "none", "single"])
    words = [word for word in _WORDS if "\r" not in word]
    if kind == "single":
        dialect.quote = "'"
        dialect.quoting = csv.QUOTE_MINIMAL
        words = [word for word in words if word != "'so'"]
    else:
        dialect.escape = True
        dialect.quoting = csv.QUOTE_NONE if kind == "none" else csv.QUOTE_MINIMAL
    made = _made(chance, dialect, words)
    if kind == "single" and chance.random() < 0.5:
        made.options, made.exact = ["--quote", "'"], True
    return made


def json_lines(chance: random.Random) -> Made:
    """Objects of which some hold no text, or are broken."""
    made = Made("t.jsonl")
    made.encoding = chance.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
    end = chance.choice(["\n", "\r\n"])
    lists = chance.choice([None, "first", "report"])
    made.options = ["--caption-lists", lists] if lists else []
    for number in range(chance.randint(4, 12)):
        caption = f"{number} {chance.choice(_WORDS)}"
        made.allowed[number] = {caption}
        value: object = caption
        if number and chance.random() < 0.4:
            value = chance.choice([[caption, "other"], [], 5, None, {"en": caption}, True, 1e400,
                                   repr([caption, "b"]), "\ud83d"])  # fmt: skip
        row = {"path": f"{number}.png", "title": value}
        text = json.dumps(row, ensure_ascii=chance.random() < 0.5 or value == "\ud83d")
        if number and chance.random() < 0.15:
            broken = [text[:-1], f"[{text}]", text + text, text.replace("{", '{"path": "x",', 1)]
            text = chance.choice(broken)
        made.rows.append((number, text + end * chance.choice([1, 1, 2])))
    return made


TABLES: dict[str, Callable[[random.Random], Made]] = {
    "well formed": well_formed,
    "cells without quotes": unquoted,
    "a stray quote": stray_quote,
    "a character less": lost_character,
    "a bare line end": bare_line_end,
    "short and long rows": short_and_long,
    "joined tables": joined,
    "mixed rules": mixed,
    "bad bytes": bad_bytes,
    "another rule of quoting": other_rules,
    "JSON lines": json_lines,
}
