"""Turn what a user writes for a data set into the list of its shards."""

import re
from collections.abc import Sequence
from os import PathLike, fspath

from clipfast.data.storage import storage_of
from clipfast.data.storage.globs import has_magic
from clipfast.data.storage.paths import join, split

_SAMPLE_DIR = join(split(__file__)[0], "sample")
_SAMPLES = {
    "sample": ("noto-emoji.tar", "twemoji.tar"),
    "sample/noto": ("noto-emoji.tar",),
    "sample/twemoji": ("twemoji.tar",),
}


def _split_braces(pattern: str) -> tuple[str, str, str] | None:
    """Cut `pattern` around its first balanced brace group; None when it has none."""
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise ValueError(f"shard pattern {pattern!r} has a '}}' without its '{{'")
        return None
    depth = 0
    for i in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[i], 0)
        if depth == 0:
            return pattern[:start], pattern[start + 1 : i], pattern[i + 1 :]
    raise ValueError(f"shard pattern {pattern!r} has a '{{' without its '}}'")


def _split_commas(body: str) -> list[str]:
    """Split at the commas that are outside nested braces."""
    parts, depth, last = [], 0, 0
    for i, char in enumerate(body):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(body[last:i])
            last = i + 1
    return [*parts, body[last:]]


def _expand_braces(pattern: str) -> list[str]:
    """All strings that the brace lists and ranges of `pattern` stand for, in the order written."""
    cut = _split_braces(pattern)
    if cut is None:
        return [pattern]
    head, body, tail = cut
    options = _split_commas(body)
    if len(options) == 1:
        number_range = re.fullmatch(r"(\d+)\.\.(\d+)", body)
        if number_range is None:
            raise ValueError(
                f"shard pattern {pattern!r}: '{{{body}}}' is neither a range such as "
                "{00000..00099} nor a list such as {a,b}"
            )
        first, last = number_range.groups()
        padded = any(len(text) > 1 and text[0] == "0" for text in (first, last))
        width = max(len(first), len(last)) if padded else 0
        step = 1 if int(first) <= int(last) else -1
        options = [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
    else:
        options = [text for option in options for text in _expand_braces(option)]
    tails = _expand_braces(tail)
    return [head + option + end for option in options for end in tails]


def _refuse_unreadable(pattern: str) -> None:
    """Raise for what is no plain tar: pipes, folders, compressed archives, indexes."""
    if pattern.startswith("pipe:"):
        raise ValueError(
            f"shard {pattern!r}: 'pipe:' is not read, because samples are fetched in any order; "
            "copy the shards to a local disk or mount the store, and give that path"
        )
    if storage_of(pattern).is_folder(pattern):
        raise ValueError(f"shard {pattern!r} is a folder; write '{pattern.rstrip('/')}/*.tar'")
    if not pattern.endswith(".tar"):
        raise ValueError(
            f"shard {pattern!r} does not end in '.tar'; give plain tar files (decompress .tar.gz "
            "and the like: compressed archives have no random access)"
        )


def _missing(paths: Sequence[str]) -> list[str]:
    """Those of `paths` that do not exist; one folder listing instead of one look per shard."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = split(path)
        if folder not in listings:
            try:
                listings[folder] = {each.name for each in storage_of(path).list(folder)}
            except OSError:
                listings[folder] = set()
        if name not in listings[folder]:
            missing.append(path)
    return missing


def _glob(pattern: str) -> list[str]:
    """The shards that a pattern with wildcards matches."""
    storage = storage_of(pattern)
    matches = storage.glob(pattern)
    # A bare `*` also matches the indexes and reports that lie beside the shards.
    tars = [path for path, is_file in matches if is_file and path.endswith(".tar")]
    if not tars:
        _refuse_unreadable(re.sub(r"[*?\[\]]", "", pattern) + ".tar")
        what = f"none of its {len(matches)} matches is a .tar file" if matches else "no match"
        if start := storage.start():
            what += f", seen from {start}"
        raise FileNotFoundError(
            f"shard pattern {pattern!r} matched nothing ({what}); "
            "check the folder, or write 'sample' for the embedded shards"
        )
    return tars


def _expand_one(pattern: str) -> list[str]:
    if pattern in _SAMPLES:
        return [join(_SAMPLE_DIR, name) for name in _SAMPLES[pattern]]
    plain: list[str] = []
    found: list[str] = []
    for text in _expand_braces(pattern):
        storage = storage_of(text)
        text = storage.resolve(text)
        if has_magic(text) and not storage.exists(text):
            found += _glob(text)
        else:
            _refuse_unreadable(text)
            plain.append(text)
            found.append(text)
    missing = _missing(plain)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"shard pattern {pattern!r}: {len(missing)} of {len(plain)} shards are missing: "
            f"{first}; complete the download, or narrow the range "
            "(a glob '*.tar' takes those that exist)"
        )
    return found


def expand(patterns: str | Sequence[str]) -> list[str]:
    """List the shards that one or several patterns name.

    A pattern is a local path, or one of a registered storage (``scheme://...``), with any of: brace
    ranges ``{00000..41407}`` (zero padding kept), brace lists ``{a,b}`` (nested too), globs
    ``* ? [..] **``, ``~``. The names ``sample``, ``sample/noto`` and ``sample/twemoji`` stand for
    the embedded shards.

    Args:
        patterns: one pattern, or a sequence of them.

    Returns:
        Paths of existing ``.tar`` files; globs sorted, braces and sequences in the order written.

    Raises:
        ValueError: no pattern, a malformed one, an unknown scheme, a file that is no ``.tar``, or a
            shard named twice.
        FileNotFoundError: a glob without a match, or missing shards, with their number.
    """
    patterns = [patterns] if isinstance(patterns, (str, PathLike)) else list(patterns)
    if not patterns or not all(fspath(p) for p in patterns):
        raise ValueError(
            "expected at least one shard pattern, got none; give for example "
            "'/data/{00000..00099}.tar', or 'sample' for the embedded shards"
        )
    shards: list[str] = []
    seen: set[str] = set()
    for pattern in patterns:
        for shard in _expand_one(fspath(pattern)):
            name = storage_of(shard).identity(shard)
            if name in seen:
                raise ValueError(
                    f"shard {shard!r} is named twice (again by pattern {fspath(pattern)!r}); "
                    "its samples would be drawn twice an epoch: remove one of the patterns"
                )
            seen.add(name)
            shards.append(shard)
    return shards
