"""Which file of a folder holds the captions of a split, by the names of published data sets."""

from pathlib import Path

from clipfast.eval.sets.tables import is_table


def find_caption_file(folder: Path, split: str) -> Path:
    """The file of captions in a folder.

    Args:
        folder: of the data set.
        split: which part; files that hold all parts are taken too.

    Returns:
        A file that published Flickr8k, Flickr30k or COCO captions have; else the only table.

    Raises:
        ValueError: there is none, or there are several others.
    """
    year = "train" if split == "train" else "val"
    usual = (
        *(f"{name}_{split}_karpathy.txt" for name in ("flickr30k", "flickr8k")),
        f"coco_{split}_karpathy.json",
        *(f"dataset_{name}.json" for name in ("flickr30k", "flickr8k", "coco")),
        *(
            f"{below}captions_{year}{n}.json"
            for below in ("annotations/", "")
            for n in (2014, 2017)
        ),
        *("flickr_annotations_30k.csv", "results.csv", "captions.txt"),
    )
    for name in usual:
        if (folder / name).is_file():
            return folder / name
    tables = sorted(path for path in folder.iterdir() if path.is_file() and is_table(path))
    if len(tables) == 1:
        return tables[0]
    what = f"several tables ({', '.join(path.name for path in tables)})" if tables else "no table"
    raise ValueError(
        f"folder {str(folder)!r} has {what} and no file of captions that is known by its name; "
        "give the path of the file itself"
    )
