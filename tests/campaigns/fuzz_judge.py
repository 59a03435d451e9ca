"""Whether what clipfast makes of a tar or an index is the truth, or is named.

An outcome is "" where it is, and says what went wrong otherwise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipfast.data import index, shards
from clipfast.data.tarwalk import walk
from tests.campaigns.fuzz_oracle import Reading

IMAGES = ("jpg", "jpeg", "png", "webp")
_REMEDIES = ("again", "anew", "pack", "tar")


def refusal(path: Path, call: Callable[[], Any]) -> tuple[Any, str, str]:
    """What a call returns, how it refused by name, and what is wrong with that."""
    try:
        return call(), "", ""
    except (ValueError, OSError) as error:
        said = str(error)
    except Exception as error:
        return None, "?", f"{type(error).__name__} without a name: {error}"[:200]
    if str(path.with_suffix("")) not in said:
        return None, said, f"does not name the shard: {said}"[:200]
    if not any(word in said for word in _REMEDIES):
        return None, said, f"does not say what to do: {said}"[:200]
    if not said.isprintable():
        return None, said, f"steers a terminal: {said!r}"[:200]
    return None, "refused", ""


def judge_tar(path: Path, truth: Reading) -> tuple[str, str]:
    """(how it ended, what is wrong) for the walk and the index of a tar.

    Args:
        path: of the tar; there is no index beside it.
        truth: of the same bytes.
    """
    found, ended, wrong = refusal(path, lambda: list(walk(str(path))))
    if ended:
        return ended, wrong
    summary, ended, wrong = refusal(path, lambda: _index(path))
    if ended:
        return ended, wrong or "the walk reads it, the index does not"
    rows = _rows(path)
    if summary.failed:
        return "refused", "the walk reads it, the index does not"
    shard_rows = [why for name, why in rows if not name]
    return "read", (
        _compare_walk(found, truth, rows)
        or _compare_rest(truth, shard_rows)
        or _compare_index(path, found, truth, rows)
    )


def _index(path: Path) -> index.Summary:
    return index.index_shards([str(path)], workers=1, dali=False, progress=False, force=True)


def _rows(path: Path) -> list[tuple[str, str]]:
    text = path.with_name("index_report.tsv").read_text(errors="surrogateescape")
    rows = [line.split("\t") for line in text.split("\n")[1:] if line]
    return [(row[1], row[2]) if len(row) == 3 else ("", f"bad row {row}") for row in rows]


def escaped(name: str) -> str:
    """As a report has it."""
    from clipfast.data import report

    return report.printable(name) if hasattr(report, "printable") else " ".join(name.split())


def _compare_walk(
    found: list[tuple[str, int, int]], truth: Reading, rows: list[tuple[str, str]]
) -> str:
    left_out = {name for name, why in rows if why.startswith("left out")}
    files = [
        each
        for each in truth.files
        if each in found or not {escaped(each[0]), escaped(each[0] + "/")} & left_out
    ]
    if not truth.whole:
        return f"tarfile reads {len(truth.files)} and stops, this reads {len(found)}"
    if found != files:
        more = [each for each in found if each not in files][:2]
        less = [each for each in files if each not in found][:2]
        return f"other files than tarfile: {more} for {less}"
    silent = [n for n in truth.others if not {escaped(n), escaped(n + "/")} & left_out]
    return f"not named: {silent[:3]}" if silent else ""


def _compare_rest(truth: Reading, shard_rows: list[str]) -> str:
    if truth.rest and not any("left unread" in why for why in shard_rows):
        return f"{truth.rest} bytes behind the end are not named"
    if not truth.marked and not any(
        "no end mark" in why or "left unread" in why for why in shard_rows
    ):
        return "a tar without its end is not named"
    return ""


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _compare_index(
    path: Path, found: list[tuple[str, int, int]], truth: Reading, rows: list[tuple[str, str]]
) -> str:
    """Every member is in a sample or in the report; a sample is image and caption of one key."""
    data = path.read_bytes()
    table = shards.read_table(str(path)) if shards.has_index(str(path)) else None
    places: dict[tuple[int, int], set[tuple[str, str]]] = {}
    for name, offset, size in found:
        places.setdefault((offset, size), set()).add(_split(name))
    named = {name for name, _ in rows}
    keys = table.keys() if table is not None else []
    files = shards.ShardFiles([str(path)])
    used = set()
    for row, key in enumerate(keys):
        image = int(table.image_offset[row]), int(table.image_size[row])
        caption = int(table.caption_offset[row]), int(table.caption_size[row])
        is_pair = any(k == key and e in IMAGES for k, e in places.get(image, ())) and (
            (key, "txt") in places.get(caption, ())
        )
        if not is_pair:
            return f"sample {key!r} pairs {places.get(image)} with {places.get(caption)}"
        if files.pread(0, *image) != data[image[0] : sum(image)]:
            return f"sample {key!r} has other bytes"
        used |= {(key, image), (key, caption)}
    for name, offset, size in found:
        key, extension = _split(name)
        if {escaped(key), escaped(name), escaped(f"{key}.{extension}")} & named:
            continue
        wanted = extension in (*IMAGES, "txt") or key not in keys
        if wanted and (key, (offset, size)) not in used:
            return f"member {name!r} vanished"
    return ""


Pair = tuple[str, bytes, bytes]


def pairs_of(path: Path) -> list[Pair]:
    """Key, image and caption of every sample, read as training reads them."""
    count = shards.count(str(path))
    table = shards.read_table(str(path))
    if count != len(table):
        raise AssertionError(f"{path.with_suffix('')}: counted {count}, again {len(table)}")
    files = shards.ShardFiles([str(path)])
    return [
        (
            key,
            files.pread(0, int(table.image_offset[i]), int(table.image_size[i])),
            files.pread(0, int(table.caption_offset[i]), int(table.caption_size[i])),
        )
        for i, key in enumerate(table.keys())
    ]


def judge_index(path: Path, truth: list[Pair], marked: bool) -> tuple[str, str]:
    """(how it ended, what is wrong) for a tar that is read through its index.

    Args:
        path: of the tar.
        truth: what an index may give, each once.
        marked: the index must give all of it or be refused.
    """
    found, ended, wrong = refusal(path, lambda: pairs_of(path))
    if ended:
        return ended, wrong
    left = list(truth)
    for pair in found:
        if pair not in left:
            return "read", f"{pair[0]!r} is no sample, or a second time: {pair[2][:30]!r}"
        left.remove(pair)
    return "read", f"{len(left)} samples vanished" if left and marked else ""
