"""Folders as people have them, with what must become of each file."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.data_judge import COLOURS, picture

_KINDS = {
    ".jpg": "JPEG", ".JPG": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG",
    ".pjpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF",
    ".TIFF": "TIFF", "": "PNG", ".image": "JPEG", ".ppm": "PPM", ".tga": "TGA",
}  # fmt: skip
_OTHERS = ("notes.md", "meta.json", "Thumbs.db", "._0.jpg", ".DS_Store", "table.csv", "x.npy")
_BROKEN = (b"", b"<html>no picture</html>", b"\xff\xd8\xff\xe0 cut", b"GIF89a")


@dataclass
class Tree:
    """What lies in a folder.

    Attributes:
        captions: of each picture that may be packed.
        files: all paths, links to folders too.
        pairs: pictures with a caption, and their numbers.
    """

    captions: dict[int, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    pairs: dict[str, int] = field(default_factory=dict)


def lay(chance: random.Random, folder: Path, outside: Path) -> Tree:
    """Make a folder with whatever can go wrong in one.

    Args:
        chance: decides.
        folder: to be packed.
        outside: beside it, for links that lead out.
    """
    tree = Tree()
    below = ["", "a", "a/b", "c d", "é"]
    linked = chance.random() < 0.6
    if linked:
        below.append("linked")
        (outside / "there").mkdir(parents=True)
        folder.mkdir()
        (folder / "linked").symlink_to(outside / "there")
    for number in range(chance.randint(4, len(COLOURS) - 2)):
        _one(chance, tree, folder, chance.choice(below), number)
    for name in chance.sample(_OTHERS, chance.randint(0, 4)):
        _write(tree, folder, f"{chance.choice(below)}/{name}".lstrip("/"), b"{}")
    if chance.random() < 0.4:
        _write(tree, folder, ".hidden/x.jpg", picture(0))
    for name, target in {"self": ".", "up": "..", "alias": "a", "more": "linked"}.items():
        if chance.random() < 0.3 and (folder / target).exists():
            (folder / name).symlink_to(target)
            tree.files.add(name)
    for name in ("nowhere.jpg", "nowhere.txt"):
        if chance.random() < 0.3:
            (folder / name).symlink_to("gone")
            tree.files.add(name)
    if chance.random() < 0.2:
        os.mkfifo(folder / "pipe.png")
        tree.files.add("pipe.png")
    return tree


def _one(chance: random.Random, tree: Tree, folder: Path, at: str, number: int) -> None:
    """A picture, a caption, or both, whole or not."""
    extension = chance.choice(list(_KINDS))
    stem = f"{at}/{number}".lstrip("/")
    stem += chance.choice(["", "", "", " x", ".y", "\x1b[31m", "\u202e", "'\""])
    # A picture without extension must not take a part of its name for one.
    stem = stem.replace(".y", "-y") if extension == "" else stem
    caption = f"{number} " + chance.choice(["a cat", "été", 'a "b"', "two\nlines", "\x1b[2J"])
    kind = chance.choice(["pair"] * 6 + ["image", "caption", "broken", "blank", "bytes", "name"])
    data = picture(number, _KINDS[extension])
    text = caption.encode()
    if kind == "broken":
        data = chance.choice(_BROKEN)
    elif kind == "blank":
        text = chance.choice([b"", b" \n"])
    elif kind == "bytes":
        text = b"\xff\xfe\x00 caption"
    if kind != "caption":
        # Without a caption, an unusual name is that of any file.
        usual = kind == "image" and extension in ("", ".image")
        _write(tree, folder, stem + (".png" if usual else extension), data)
    if kind == "image":
        return
    name = stem + (f"{extension}.txt" if kind == "name" and extension else ".txt")
    _write(tree, folder, name, text)
    if kind != "caption":
        tree.pairs[stem + extension] = number
        tree.captions[number] = caption


def _write(tree: Tree, folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    tree.files.add(name)
