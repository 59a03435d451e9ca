"""List what `clipfast.data.pack` is to pack: rows of a table, or images beside their captions."""

from clipfast.data.kinds import TABLES
from clipfast.data.packfolder import list_folder
from clipfast.data.packitem import Item, Listing, TableOptions
from clipfast.data.packtable import list_table
from clipfast.storage import storage_of
from clipfast.storage.paths import split_extension

__all__ = ["Item", "Listing", "TableOptions", "list_items"]

# What people give for a table, and what to do with it.
_REMEDIES = {
    ".tar": "shards need no packing; index them: python -m clipfast.data.index",
    ".json": "write one object a line, and name the file .jsonl",
    ".parquet": "write its columns as .csv or .jsonl",
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".ods": "save the sheet as CSV UTF-8",
    ".gz": "decompress it",
    ".zip": "unpack it, and give the folder or the table in it",
    ".tgz": "unpack it, and give the folder",
}


def list_items(
    source: str, images: str | None = None, options: TableOptions | None = None
) -> Listing:
    """List the items of a table or of a folder tree.

    Args:
        source: a ``.csv``, ``.tsv``, ``.jsonl`` file, or a folder, searched with its subfolders.
        images: folder that a table's relative paths start from; default the table's own.
        options: how the table is read.

    Returns:
        The items in a fixed order, and every row or file that is none, with the reason.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a file of another kind, a table without the columns, nothing at all to pack.
    """
    options = options or TableOptions()
    if storage_of(source).is_folder(source):
        if images or options != TableOptions():
            raise ValueError(
                f"{source!r} is a folder; --images, --image-column, --caption-column, --separator, "
                "--quote, --encoding and --caption-lists belong to a table: give the .csv, .tsv or "
                ".jsonl file as the source"
            )
        return list_folder(source)
    if not storage_of(source).exists(source):
        raise FileNotFoundError(f"source {source!r} does not exist; give a table or a folder")
    extension = split_extension(source)[1].lower()
    if extension not in TABLES:
        remedy = _REMEDIES.get(extension, "rename the table by what it holds")
        raise ValueError(
            f"source {source!r} is neither a folder nor a .csv, .tsv or .jsonl table; {remedy}"
        )
    if images and not storage_of(images).is_folder(images):
        raise FileNotFoundError(f"--images {images!r} is no folder")
    return list_table(source, images, options)
