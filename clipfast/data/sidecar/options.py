"""What a person says of a table of captions, and the files that this means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from clipfast.arguments import WrongKindError, shown
from clipfast.data.braces import expand_braces
from clipfast.storage import storage_of
from clipfast.storage.globs import has_magic
from clipfast.storage.paths import join, split, split_extension

Missing = Literal["leave-out", "own"]
# Stand in a pattern for the path of a tar without .tar, and for that without its folder.
_SHARD, _NAME = "{shard}", "{name}"
ENDINGS = (".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class Sidecar:
    """Where captions stand, if not in the shards.

    Attributes:
        files: patterns of Parquet and CSV files: paths, brace ranges, globs, folders. With
            ``{shard}`` or ``{name}`` there is a file for each shard: the path of its tar without
            ``.tar``, or that without its folder.
        key: column of the samples' keys, as the tar has them.
        captions: columns of captions, of which a sample has all that say something. A column of
            lists gives all of each list.
        shard: column of the tars' names, with or without folder and ``.tar``. A table without it
            has keys that no two shards share. It does not count for files of a shard each.
        missing: what is done with samples that no row is of: they are left out, or take the caption
            of their own that the tar has.

    Raises:
        TypeError: a value is of another kind; a ``ValueError`` too.
        ValueError: a name is empty or there twice, or patterns of both kinds are mixed.
    """

    files: tuple[str, ...]
    key: str = "key"
    captions: tuple[str, ...] = ("caption",)
    shard: str = "shard"
    missing: Missing = "leave-out"

    def __post_init__(self) -> None:
        for name in ("files", "captions"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):
                raise WrongKindError(f"{name} must be a tuple of texts; got {shown(given)}")
            if not given or not all(given):
                raise ValueError(f"expected at least one of {name}, and none empty; got {given}")
        if not self.key:
            raise ValueError("the column of keys has no name")
        names = [self.key, *self.captions]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"column {sorted(twice)[0]!r} is named twice, among {names}")
        if self.missing not in get_args(Missing):
            raise ValueError(f"missing must be 'leave-out' or 'own'; got {self.missing!r}")
        if len({_is_of_a_shard(pattern) for pattern in self.files}) > 1:
            raise ValueError(
                f"of {', '.join(self.files)} some are tables of a shard each and others are not: "
                "name files of one kind"
            )

    @property
    def per_shard(self) -> bool:
        """Whether there is a file for each shard."""
        return _is_of_a_shard(self.files[0])

    def files_of(self, shard: str | None = None) -> list[str]:
        """Paths of the tables, in the order in which their captions count.

        Args:
            shard: path of a tar, where each has its own; else None.

        Raises:
            ValueError: a file is named otherwise than its form is known by, or a pattern is
                malformed.
            FileNotFoundError: a pattern means no file.
        """
        found: list[str] = []
        for pattern in self.files:
            if shard is None:
                found += _expand(pattern)
            else:
                bare = split_extension(shard)[0]
                path = pattern.replace(_SHARD, bare).replace(_NAME, split(bare)[1])
                found.append(_known(path))
        return found


def _is_of_a_shard(pattern: str) -> bool:
    return _SHARD in pattern or _NAME in pattern


def _known(path: str) -> str:
    if not path.lower().endswith(ENDINGS):
        raise ValueError(f"table of captions {path!r}: expected the ending {', '.join(ENDINGS)}")
    return path


def _expand(pattern: str) -> list[str]:
    found: list[str] = []
    for text in expand_braces(pattern):
        storage = storage_of(text)
        text = storage.resolve(text)
        if has_magic(text) and not storage.exists(text):
            paths = [path for path, is_file in storage.glob(text) if is_file]
            found += _tables(paths, pattern)
        elif not text.lower().endswith(ENDINGS) and storage.is_folder(text):
            names = sorted(each.name for each in storage.list(text) if each.is_file)
            found += _tables([join(text, name) for name in names], pattern)
        elif not storage.is_file(_known(text)):
            raise FileNotFoundError(f"table of captions {text!r} is not there")
        else:
            found.append(text)
    return found


def _tables(paths: Sequence[str], pattern: str) -> list[str]:
    """The tables among other files."""
    found = [path for path in paths if path.lower().endswith(ENDINGS)]
    if not found:
        raise FileNotFoundError(
            f"table of captions {pattern!r}: none of {len(paths):,} files there ends in "
            f"{', '.join(ENDINGS)}"
        )
    return found
