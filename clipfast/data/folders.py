"""A folder that is named as a data set: the shards that lie directly in it."""

import logging
import re

from clipfast.data.report import printable
from clipfast.storage import storage_of
from clipfast.storage.paths import join

# img2dataset's names: a shard, and what it writes when the shard is done.
_NUMBERED = re.compile(r"(\d+)\.tar")
_STATISTICS = "{}_stats.json"

_log = logging.getLogger(__name__)
_told: set[str] = set()


def tars_in(folder: str) -> list[str]:
    """The shards of a folder, sorted by name.

    Where a program such as img2dataset has left statistics beside its numbered shards, those
    without are not finished: they are left out, with a warning.

    Args:
        folder: a local one or one of a store.

    Raises:
        ValueError: it holds no shard, or none that is finished.
        OSError: it cannot be listed.
    """
    names = {each.name for each in storage_of(folder).list(folder) if each.is_file}
    tars = sorted(name for name in names if name.endswith(".tar"))
    if not tars:
        raise ValueError(
            f"shard {folder!r} is a folder without .tar files; those of folders inside it are "
            f"'{folder.rstrip('/')}/**/*.tar'"
        )
    unfinished = {name for name in tars if _is_unfinished(name, names)}
    finished = [join(folder, name) for name in tars if name not in unfinished]
    first = min(unfinished, default="")
    what = (
        f"{len(unfinished):,} of {len(tars):,} shards in {folder} have no _stats.json beside them "
        f"as others have, such as {first}: their download has not ended"
    )
    if not finished:
        raise ValueError(what)
    if unfinished and folder not in _told:
        _told.add(folder)
        _log.warning("%s; they are left out", printable(what))
    return finished


def _is_unfinished(name: str, names: set[str]) -> bool:
    number = _NUMBERED.fullmatch(name)
    if number is None or _STATISTICS.format(number[1]) in names:
        return False
    return any(each.endswith("_stats.json") for each in names)
