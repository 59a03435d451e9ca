"""Which data sets of the catalogue lie below a folder, by the names of its folders."""

from __future__ import annotations

import re
from pathlib import Path

from clipfast.eval.sets import catalogue

# Folders of folders, as CLIP_benchmark names them.
_ABOVE = ("wds", "vtab", "tfds")
# What published archives are called once they are unpacked, or before.
_ARCHIVES = {
    "cifar-10-batches-py": "cifar10",
    "cifar-10-batches-bin": "cifar10",
    "cifar-10-python.tar.gz": "cifar10",
    "cifar-10-binary.tar.gz": "cifar10",
    "cifar-100-python": "cifar100",
    "cifar-100-binary": "cifar100",
    "cifar-100-python.tar.gz": "cifar100",
    "cifar-100-binary.tar.gz": "cifar100",
    "imagenet": "imagenet1k",
    "coco": "mscoco_captions",
}


def find_sets(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """The sets of the catalogue in a folder.

    A folder is one of them by its name: ``pets``, ``vtab/pets``, ``wds/vtab/pets``,
    ``wds_vtab-pets``, or the name of a published archive.

    Args:
        root: the folder.

    Returns:
        Places by the catalogue's name, sorted; and folders whose name is not known.

    Raises:
        ValueError: there is no such folder, it holds none, or two of one name.
    """
    if not root.is_dir():
        raise ValueError(f"--data-root {root} is no folder")
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path, written in _entries(root, ""):
        name = _ARCHIVES.get(path.name.lower(), catalogue.plain_name(_as_in_catalogue(written)))
        if catalogue.find_entry(name) is None:
            if path.is_dir():
                others.append(path)
        elif name in found:
            raise ValueError(f"{found[name]} and {path} are both {name}: move one of them away")
        else:
            found[name] = path
    if not found:
        raise ValueError(
            f"no folder in {root} has the name of a data set of the catalogue, such as 'cifar10': "
            "name sets with --data, or in a --table"
        )
    return dict(sorted(found.items())), others


def _entries(folder: Path, before: str) -> list[tuple[Path, str]]:
    """Paths, each with its name from the root on."""
    entries = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.name.lower() in _ABOVE and path.is_dir():
            entries += _entries(path, f"{before}{path.name}/")
        else:
            entries.append((path, before + path.name))
    return entries


def _as_in_catalogue(name: str) -> str:
    """``wds_vtab-pets``, the name of a repository of shards, as ``wds/vtab/pets``."""
    return re.sub(r"(^|/)vtab-", r"\1vtab/", re.sub(r"(^|/)wds_", r"\1wds/", name.lower()))
