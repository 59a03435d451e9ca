"""Pairs of image and caption file from a folder tree; every file is packed, named or counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from clipfast.data.folderwalk import walk_once
from clipfast.data.kinds import CAPTION_FILE, TABLES, image_extensions, may_be_image
from clipfast.data.packitem import Item, Listing
from clipfast.data.report import INDEX_REPORT, PACK_REPORT
from clipfast.storage import Listed
from clipfast.storage.paths import join, relative, split_extension

# A report names kinds of files, commonest first, up to this many.
_KINDS = 12
_NO_FILE = "a link that leads nowhere, or no plain file"


@dataclass
class _Tree:
    """What was met on the way through a folder."""

    folder: str
    listing: Listing = field(default_factory=lambda: Listing(unit="images"))
    # Without the other half beside them: name without extension, source.
    images_alone: list[tuple[str, str]] = field(default_factory=list)
    captions_alone: list[tuple[str, str]] = field(default_factory=list)
    captions: int = 0
    captions_named: int = 0
    others: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)

    def name_image(self, source: str, reason: str) -> None:
        """Report an image."""
        self.listing.total += 1
        self.listing.rejected.append((source, reason))

    def name_caption(self, source: str, reason: str) -> None:
        """Report a caption file."""
        self.captions_named += 1
        self.listing.rejected.append((source, reason))


def list_folder(folder: str) -> Listing:
    """List the images of a folder tree that have a caption file beside them.

    The caption of ``a.jpg`` is ``a.txt`` or ``a.jpg.txt``. Linked folders are followed, each folder
    once. Hidden files and folders are left alone, and counted.

    Raises:
        ValueError: there is neither an image nor a caption.
    """
    tree = _Tree(folder)
    for at, names in walk_once(folder, tree.listing.notes):
        _pair(tree, at, names)
    _tell_alone(tree)
    listing = tree.listing
    if count := tree.others.total():
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in tree.others.most_common(_KINDS))
        more = ", ..." if len(tree.others) > _KINDS else ""
        listing.notes.append((".", f"left alone, {count:,} files of other kinds: {kinds}{more}"))
    listing.rest = (
        f"; captions: {tree.captions:,}, {tree.captions_named:,} of them reported"
        f"; other files: {count:,}"
    )
    if tree.tables:
        listing.hint = f"to use the table there, give {tree.tables[0]!r} as the source"
    elif tree.others[".tar"]:
        listing.hint = "shards need no packing; index them: python -m clipfast.data.index"
    if not listing.total and not tree.captions:
        hint = f"; {listing.hint}" if listing.hint else ""
        raise ValueError(
            f"folder {folder!r} holds no image (.jpg, .png, .webp, .gif, ...) with a "
            f"{CAPTION_FILE} of the same name beside it{hint}"
        )
    return listing


def _pair(tree: _Tree, at: str, listed: Sequence[Listed]) -> None:
    """Pair the files of one folder."""
    images: list[str] = []
    # By what an image must be called, with its extension or without.
    captions: dict[str, str] = {}
    others: list[str] = []
    for each in listed:
        stem, extension = split_extension(each.name)
        extension, source = extension.lower(), relative(join(at, each.name), tree.folder)
        image, caption = extension in image_extensions(), extension == CAPTION_FILE
        tree.captions += caption and not each.name.startswith(".")
        if each.name.startswith("."):
            tree.others["hidden"] += 1
        elif not each.is_file and image:
            tree.name_image(source, f"image is {_NO_FILE}")
        elif not each.is_file and caption:
            tree.name_caption(source, f"caption is {_NO_FILE}")
        elif not each.is_file:
            tree.others["no plain file"] += 1
        elif image:
            images.append(each.name)
        elif not caption:
            others.append(each.name)
        # Sorted, .TXT comes before .txt, which is taken.
        elif (double := captions.get(stem)) is None or each.name.endswith(CAPTION_FILE):
            captions[stem] = each.name
            if double is not None:
                tree.name_caption(
                    relative(join(at, double), tree.folder), f"caption file {each.name} is taken"
                )
        else:
            tree.name_caption(source, f"caption file {double} is taken")
    unusual = _unusual(images, captions, others)
    _pair_names(tree, at, sorted([*images, *unusual]), captions)
    for name in others:
        extension = split_extension(name)[1].lower()
        if name not in unusual:
            tree.others[extension or "without extension"] += 1
        if extension in TABLES and name not in (INDEX_REPORT, PACK_REPORT):
            tree.tables.append(join(at, name))


def _unusual(images: Sequence[str], captions: dict[str, str], others: Sequence[str]) -> set[str]:
    """Files that have a caption and no name of an image, where no image has that caption."""
    taken = {*images, *(split_extension(name)[0] for name in images)}
    return {
        name
        for name in others
        if may_be_image(split_extension(name)[1].lower())
        and any(key in captions and key not in taken for key in (split_extension(name)[0], name))
    }


def _pair_names(tree: _Tree, at: str, images: Sequence[str], captions: dict[str, str]) -> None:
    used = set()
    for name in images:
        stem = split_extension(name)[0]
        source = relative(join(at, name), tree.folder)
        key = next((key for key in (stem, name) if key in captions), None)
        if key is None:
            tree.images_alone.append((stem, source))
            continue
        used.add(key)
        tree.listing.total += 1
        tree.listing.items.append(Item(source, join(at, name), None, join(at, captions[key])))
    for key, name in captions.items():
        if key not in used:
            tree.captions_alone.append((key, relative(join(at, name), tree.folder)))


def _tell_alone(tree: _Tree) -> None:
    """Report what has no other half beside it, with where that half may be."""
    texts = {stem: source for stem, source in reversed(tree.captions_alone)}
    pictures = {stem: source for stem, source in reversed(tree.images_alone)}
    for stem, source in tree.images_alone:
        reason = f"image has no caption file {stem}{CAPTION_FILE} beside it"
        tree.name_image(source, reason + _elsewhere(texts.get(stem)))
    for stem, source in tree.captions_alone:
        reason = "caption has no image beside it"
        tree.name_caption(source, reason + _elsewhere(pictures.get(stem)))


def _elsewhere(source: str | None) -> str:
    return f"; {source} is in another folder: put them together" if source else ""
