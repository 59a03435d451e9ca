"""What a packing run made of its input, read without the package, and whether that is right."""

import csv
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.campaigns.subject import Subject

# Eight colours that survive JPEG: what an image shows tells which one it was.
_LEVELS = (0, 128, 255)
COLOURS = [(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS]
_SIDE = 16
_CONTROL = "[\x00-\x1f\x7f-\x9f\u202a-\u202e]"


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture that `number_of` knows again."""
    buffer = BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), COLOURS[number]).save(buffer, kind)
    return buffer.getvalue()


def number_of(data: bytes) -> int:
    """Which picture this is."""
    with Image.open(BytesIO(data)) as image:
        mean = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert isinstance(mean, tuple)
    return min(
        range(len(COLOURS)),
        key=lambda i: sum((a - b) ** 2 for a, b in zip(COLOURS[i], mean, strict=True)),
    )


@dataclass
class Packed:
    """The outcome of a run.

    Attributes:
        status: of the process.
        said: what it printed.
        pairs: (number of the picture, caption) of each sample.
        report: (source, reason) of each line.
    """

    status: int
    said: str
    pairs: list[tuple[int, str]] = field(default_factory=list)
    report: list[tuple[str, str]] = field(default_factory=list)


def pack(subject: Subject, source: Path, output: Path, *options: str) -> Packed:
    """Pack as a user does, and read what came out with Python's own modules."""
    words = [str(subject.python), "-m", "clipfast.data.pack", str(source), "--output", str(output)]
    words += ["--workers", "1", "--no-dali", "--shuffle-seed", "None", *options]
    try:
        done = subprocess.run(
            words, cwd=output.parent, env=subject.environment(), capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return Packed(124, "did not end within 60 s")
    packed = Packed(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            data = {name: file.read() for name, file in files.items() if file}
        for name in data:
            if not name.endswith(".txt"):
                caption = data[name.rsplit(".", 1)[0] + ".txt"].decode()
                packed.pairs.append((number_of(data[name]), caption))
    if (report := output / "pack_report.tsv").exists():
        with report.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
            packed.report = [(row[0], row[1]) for row in rows][1:]
    return packed


@dataclass(frozen=True)
class Verdict:
    """Of one attack.

    Attributes:
        fault: what was silently wrong; "" when nothing was.
        right: pairs that are as they were meant.
        named: rows or files that the report names.
    """

    fault: str
    right: int
    named: int


def bad_output(packed: Packed) -> str:
    """What no run may do, whatever it was given."""
    if packed.status not in (0, 1):
        return f"status {packed.status}: {packed.said[-200:]}"
    if "Traceback" in packed.said:
        return f"a traceback: {packed.said[-200:]}"
    rows = "".join(source + reason for source, reason in packed.report)
    if re.search(_CONTROL, packed.said.replace("\n", "") + rows):
        return "a control character was printed or reported"
    if packed.status == 1 and "error: " not in packed.said:
        return "failed without an error"
    return ""


def judge_table(
    packed: Packed,
    name: str,
    allowed: dict[int, Collection[str]],
    lines: dict[int, tuple[int, int]],
    exact: bool,
) -> Verdict:
    """Whether every row is packed right or named.

    Args:
        packed: what came out.
        name: of the table's file.
        allowed: captions that are right, for each row; rows and pictures have the same numbers.
        lines: first and last line of each row in the file, from 1.
        exact: the table is well formed, so every row must be packed.
    """
    fault = bad_output(packed)
    named = [line for source, _ in packed.report if (line := _line(source, name))]
    counted = Counter(number for number, _ in packed.pairs)
    right = 0
    for number, caption in packed.pairs:
        if caption in {text.strip() for text in allowed.get(number, ())}:
            right += 1
        else:
            fault = fault or f"row {number} has the caption {caption!r}"
    whole = packed.status == 1 and not packed.report
    for number, (first, last) in lines.items():
        if not whole and not counted[number] and not any(first <= each <= last for each in named):
            fault = fault or f"row {number} vanished (lines {first} to {last})"
        if counted[number] > 1:
            fault = fault or f"row {number} was packed {counted[number]} times"
    if not whole:
        fault = fault or _sum(packed, len(named))
    if exact and (packed.report or right != len(allowed)):
        fault = (
            fault or f"{right} of {len(allowed)} rows of a well-formed table: {packed.report[:1]}"
        )
    return Verdict(fault, right, len(lines) if whole else len(named))


def _line(source: str, name: str) -> int:
    found = re.match(rf"{re.escape(name)}:(\d+)", source)
    return int(found[1]) if found else 0


def _sum(packed: Packed, named: int) -> str:
    found = re.search(r"rows: ([\d,]+) = ([\d,]+) packed \+ ([\d,]+) reported", packed.said)
    if not found:
        return f"no sum was printed: {packed.said[-200:]}"
    total, done, left = (int(each.replace(",", "")) for each in found.groups())
    if total != done + left or done != len(packed.pairs) or left != named:
        return f"the sum is wrong: {found[0]}, and {len(packed.pairs)} packed, {named} reported"
    return ""


def judge_folder(
    packed: Packed, captions: dict[int, str], files: Collection[str], pairs: dict[str, int]
) -> Verdict:
    """Whether every file is packed right, named or counted.

    Args:
        packed: what came out.
        captions: of each picture.
        files: every file that lies there, with its path in the folder; links to folders too.
        pairs: the pictures among them that must be packed or named, with their numbers.
    """
    fault = bad_output(packed)
    counted = Counter(number for number, _ in packed.pairs)
    right = 0
    for number, caption in packed.pairs:
        if captions.get(number, "").strip() == caption:
            right += 1
        else:
            fault = fault or f"picture {number} has the caption {caption!r}"
    named = {source for source, _ in packed.report}
    files = {told(path) for path in files}
    pairs = {told(path): number for path, number in pairs.items()}
    other = sum(
        int(found[1].replace(",", ""))
        for _, reason in packed.report
        if (found := re.match(r"left alone, ([\d,]+) files", reason))
    )
    unnamed = 0
    for path in sorted(files):
        parents = {str(parent) for parent in Path(path).parents}
        if path in named or parents & named - {"."}:
            continue
        number = pairs.get(path)
        if number is None:
            unnamed += 1
        elif not counted[number]:
            fault = fault or f"{path} vanished"
    # What is neither a picture nor named is counted, or is the caption of a picture: the line of a
    # picture speaks for its caption too.
    used = sum(not _below(path, named) for path in pairs)
    if unnamed != used + other:
        fault = fault or f"{unnamed} files are neither packed nor named, {used} + {other} counted"
    return Verdict(fault, right, len(named - {"."}))


def told(name: str) -> str:
    """A name as a report must write it."""
    return re.sub(_CONTROL, lambda found: found[0].encode("unicode_escape").decode(), name)


def _below(path: str, named: Collection[str]) -> bool:
    return any(str(parent) in named for parent in Path(path).parents if str(parent) != ".")
