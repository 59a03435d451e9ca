"""Turn what a user writes for a data set into the list of its shards."""

import re
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

from clipfast.arguments import WrongKindError, shown
from clipfast.data.braces import expand_braces
from clipfast.data.folders import tars_in
from clipfast.data.synthetic_name import SYNTHETIC
from clipfast.storage import storage_of
from clipfast.storage.globs import has_magic
from clipfast.storage.paths import join, scheme_of, split

_SAMPLE_DIR = join(split(__file__)[0], "sample")
_SAMPLES = {
    "sample": ("noto-emoji.tar", "twemoji.tar"),
    "sample/noto": ("noto-emoji.tar",),
    "sample/twemoji": ("twemoji.tar",),
}


def _refuse_unreadable(pattern: str) -> None:
    """Raise for what is no plain tar: pipes, folders, compressed archives, indexes."""
    if pattern.startswith("pipe:"):
        raise ValueError(
            f"shard {pattern!r}: 'pipe:' is not read, because samples are fetched in any order; "
            "copy the shards to a local disk or mount the store, and give that path"
        )
    storage = storage_of(pattern)
    # A look at each of 41,408 shards in a store takes minutes; `_look` asks for all of them.
    is_shard = storage.is_remote and pattern.endswith(".tar")
    if not is_shard and storage.is_folder(pattern):
        raise ValueError(f"shard {pattern!r} is a folder, and no tar file")
    if pattern.partition(":")[0] == SYNTHETIC:
        raise ValueError(
            f"shard {pattern!r}: random pairs are trained on alone, by '--data.train {SYNTHETIC}' "
            "or a clipfast.data.SyntheticLoader"
        )
    if pattern.partition("/")[0] == "sample":
        raise ValueError(f"shard {pattern!r}: the embedded shards are {', '.join(_SAMPLES)}")
    if not pattern.endswith(".tar"):
        raise ValueError(
            f"shard {pattern!r} does not end in '.tar'; give plain tar files (decompress .tar.gz "
            "and the like: compressed archives have no random access)"
        )


def _refuse_joined(pattern: str) -> None:
    """Raise for what joins several patterns in one text."""
    parts = pattern.split("::")
    if len(parts) == 1 or storage_of(pattern).exists(pattern):
        return
    if all(re.fullmatch(r"[\d.]*", part) for part in parts):
        raise ValueError(
            f"shard pattern {pattern!r} is a list of weights, which are not read: each sample is "
            "seen once per epoch"
        )
    raise ValueError(
        f"shard pattern {pattern!r}: '::' does not join patterns here; give them one by one: "
        + " ".join(map(repr, filter(None, parts)))
    )


def _look(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """What of `paths` does not exist, and what is no file.

    Raises:
        OSError: a folder that is there cannot be listed.
    """
    by_scheme: dict[str, list[str]] = {}
    for path in paths:
        by_scheme.setdefault(scheme_of(path), []).append(path)
    found: dict[str, bool] = {}
    for some in by_scheme.values():
        found |= storage_of(some[0]).present(some)
    return [path for path in paths if path not in found], [
        path for path in paths if not found.get(path, True)
    ]


def _missing_error(pattern: str, missing: Sequence[str], asked: int) -> FileNotFoundError:
    """Says how many are missing, and what else may be the cause."""
    first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    what = f"shard pattern {pattern!r}: {len(missing)} of {asked} shards are missing: {first}"
    storage, folder = storage_of(missing[0]), split(missing[0])[0]
    start = f", seen from {place}" if (place := storage.start()) else ""
    if "," in missing[0]:
        return FileNotFoundError(f"{what}; a comma joins no patterns: give them one by one")
    if folder and not storage.is_folder(folder):
        return FileNotFoundError(f"{what}; there is no folder {folder!r}{start}")
    if len(missing) == asked:
        return FileNotFoundError(f"{what}; check the name{start}")
    return FileNotFoundError(
        f"{what}; complete the download, or narrow the range (a glob '*.tar' takes those that "
        "exist)"
    )


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
    _refuse_joined(pattern)
    plain: list[str] = []
    found: list[str] = []
    for text in expand_braces(pattern):
        storage = storage_of(text)
        text = storage.resolve(text)
        if has_magic(text) and not storage.exists(text):
            found += _glob(text)
        elif not text.endswith(".tar") and storage.is_folder(text):
            found += tars_in(text)
        else:
            _refuse_unreadable(text)
            plain.append(text)
            found.append(text)
    missing, others = _look(plain)
    if missing:
        raise _missing_error(pattern, missing, len(plain))
    if others:
        raise ValueError(f"shard {others[0]!r} is no file: a device, a pipe, or a link to nothing")
    return found


def expand(patterns: str | Sequence[str]) -> list[str]:
    """List the shards that one or several patterns name.

    A pattern is a local path, or one of a registered storage (``scheme://...``), with any of: brace
    ranges ``{00000..41407}`` (zero padding kept, a step as in ``{0..8..2}``), brace lists ``{a,b}``
    (nested too), globs ``* ? [..] **``, ``~``. A folder stands for the shards that lie directly in
    it (``clipfast.data.folders``), and the names ``sample``, ``sample/noto`` and ``sample/twemoji``
    for the embedded ones.

    Args:
        patterns: one pattern, or a sequence of them.

    Returns:
        Paths of existing ``.tar`` files; globs sorted, braces and sequences in the order written.

    Raises:
        TypeError: a pattern is no text and no path.
        ValueError: no pattern, a malformed one, an unknown scheme, a file that is no ``.tar``, or a
            shard named twice.
        FileNotFoundError: a glob without a match, or missing shards, with their number.
        OSError: a folder cannot be listed.
    """
    texts = _texts(patterns)
    if not texts or not all(texts):
        raise ValueError(
            "expected at least one shard pattern, got none; give for example "
            "'/data/{00000..00099}.tar', or 'sample' for the embedded shards"
        )
    shards: list[str] = []
    seen: set[str] = set()
    for pattern in texts:
        for shard in _expand_one(pattern):
            name = storage_of(shard).identity(shard)
            if name in seen:
                raise ValueError(
                    f"shard {shard!r} is named twice (again by pattern {pattern!r}); "
                    "its samples would be drawn twice an epoch: remove one of the patterns"
                )
            seen.add(name)
            shards.append(shard)
    return shards


def _texts(patterns: Any) -> list[str]:
    """Patterns as text."""
    given = [patterns] if isinstance(patterns, (str, bytes, PathLike)) else patterns
    try:
        given = list(given)
    except TypeError:
        given = [patterns]
    texts = []
    for each in given:
        text = fspath(each) if isinstance(each, PathLike) else each
        if not isinstance(text, str):
            raise WrongKindError(f"a shard pattern must be text or a path; got {shown(each)}")
        if "\0" in text:
            raise ValueError(f"shard pattern {text!r} holds a zero byte, which no path does")
        texts.append(text)
    return texts
