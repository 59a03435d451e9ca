"""Where the images of a table lie, and whether all of them are there."""

from collections.abc import Sequence
from pathlib import Path

# Below the folder of a table: what published data sets call the folder of their images.
_BELOW = (
    "", "images", "Images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset",
    "val2014", "val2017", "train2014", "train2017",
)  # fmt: skip


def find_root(table: Path, root: Path | None, first: str) -> Path:
    """The folder that the paths of a table start from.

    Args:
        table: path of it.
        root: that was asked for.
        first: path of the first image.

    Returns:
        `root`; or the folder of the table, or of images below it or beside it, that has the image.
    """
    if root is not None:
        return root
    tops = (table.parent, table.parent.parent)
    folders = [top / below for top in tops for below in _BELOW]
    return next((each for each in folders if (each / first).is_file()), table.parent)


def check_files(table: Path, paths: Sequence[str], wheres: Sequence[str]) -> None:
    """Refuse paths that lead to no file.

    Args:
        table: that names them, for the message.
        paths: of the images.
        wheres: where each stands.

    Raises:
        ValueError: one or more are missing; says how many.
    """
    missing = [i for i, path in enumerate(paths) if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"{wheres[missing[0]]}: there is no file {paths[missing[0]]!r}; {len(missing):,} of "
            f"{len(paths):,} images are missing. Paths start from the folder of the table; name "
            "another one as root, or move the table there"
        )
