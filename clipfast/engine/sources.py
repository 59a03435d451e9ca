"""Short names of the data of a run: they stand in tags, tables, floors and weights."""

import itertools
import re
from collections.abc import Sequence

_NAME = re.compile(r"[\w.-]+")
# Before the "=" of a path such as "run/lr=3/0.tar", "s3://..." or "{a=1,b=2}.tar".
_OF_A_PATH = re.compile(r"[/:~{\[*?]")
_WILD = re.compile(r"\{[^{}]*\}|\[[^\]]*\]|[*?]")


def named_sources(values: Sequence[str]) -> dict[str, str]:
    """The patterns of ``--data.eval`` by their names, in order.

    Args:
        values: each ``NAME=PATTERN`` or a pattern. A pattern without a name gets one: an embedded
            sample its own, a path its last part that says something (``/data/coco/{0..3}.tar`` is
            ``coco``), with a number behind it where another set has that name.

    Returns:
        Name to pattern.

    Raises:
        ValueError: a name or an unnamed pattern that is given twice, or a name that is none.
    """
    pairs = [_split(value) for value in values]
    given = [name or pattern for name, pattern in pairs]
    for value in given:
        if given.count(value) > 1:
            raise ValueError(
                f"--data.eval: the name {value!r} is given twice. Give each set a name of its own, "
                "NAME=PATTERN, and quote the pattern so that the shell does not expand it"
            )
    taken = {name for name, _ in pairs if name}
    named = {}
    for name, pattern in pairs:
        if not name:
            name = _unlike(_short(pattern), taken)
            taken.add(name)
        named[name] = pattern
    return named


def training_sources(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The patterns of ``--data.train`` by the names of their sources, in order.

    Args:
        values: each ``NAME=PATTERN`` or a pattern. A name may come several times.

    Returns:
        Name to patterns; nothing where no name is given.

    Raises:
        ValueError: some have a name and others have none, or a name is none.
    """
    pairs = [_split(value, "--data.train") for value in values]
    if not any(name for name, _ in pairs):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name, pattern in pairs:
        if not name:
            raise ValueError(
                f"--data.train: {pattern} has no name, and others have one. Give each source its "
                "own, such as cc='/data/cc/*.tar', or none"
            )
        found[name] = (*found.get(name, ()), pattern)
    return found


def caption_files(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The patterns of ``--data.caption-files`` by the names of the data that they are of.

    Args:
        values: each ``NAME=PATTERN`` or a pattern, whose name is "". A name may come several times.

    Raises:
        ValueError: a name is none.
    """
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, pattern = _split(value, "--data.caption-files", "table")
        found[name] = (*found.get(name, ()), pattern)
    return found


def _split(value: str, option: str = "--data.eval", what: str = "shards") -> tuple[str, str]:
    """Name and pattern; the name is empty where none is given."""
    name, equals, pattern = value.partition("=")
    if not equals or _OF_A_PATH.search(name):
        return "", value
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{option} {value}: {name!r} is no name: expected letters, digits, '.', '_' and "
            "'-', such as coco='/data/coco/{0..3}.tar'"
        )
    if not pattern:
        raise ValueError(f"{option} {value}: no {what} after the '='")
    return name, pattern


def _short(pattern: str) -> str:
    """The last part of a path that has a letter outside its wildcards; or "shards"."""
    if not pattern.endswith(".tar") and not _WILD.search(pattern):
        return pattern
    path = re.sub(r"^\w+://", "", pattern.removesuffix(".tar"))
    while (plain := _WILD.sub("", path)) != path:
        path = plain
    for part in reversed(path.split("/")):
        name = re.sub(r"[^\w.-]+", "-", part).strip("-_.")
        if re.search(r"[^\W\d_]", name):
            return name
    return "shards"


def _unlike(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in itertools.count(2) if f"{name}-{n}" not in taken)
