"""Images of every container oddity: right, or refused with a reason that is true.

Each is indexed and decoded as training does, and compared with Pillow within 3 of 255 before any
resize. Nothing may be accepted and decoded otherwise, and nothing refused that Pillow reads.
"""

import io
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tests.campaigns.images_form import Made
from tests.campaigns.images_jpeg import jpegs
from tests.campaigns.images_other import others
from tests.campaigns.images_png import pngs
from tests.campaigns.images_webp import webps
from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table

COUNT = 1000
_TOLERANCE = 3.0
_WORKER = Path(__file__).with_name("images_worker.py")
_DIED = "the process died"


def campaign(setting: Setting) -> Table:
    """Try all images, or ``setting.count`` of them, of each kind some."""
    table = Table("images")
    images = chosen(setting)
    results = _Results(setting)
    results.run(dict(enumerate(images)))
    for number, image in enumerate(images):
        outcome = _judge(image, results, number)
        reason = results.reasons.get(number, "")
        said = f"refused: {reason}" if reason else "as Pillow"
        table.add(image.kind, image.name, not outcome, (outcome or said)[:300])
    return table


def chosen(setting: Setting) -> list[Made]:
    """The images of a campaign, in turns of their kinds where they are not all."""
    images = [one for makers in (jpegs, pngs, webps, others) for one in makers(setting.random)]
    if setting.count >= len(images):
        return images
    setting.random.shuffle(images)
    turns: dict[str, int] = {}
    ordered = []
    for image in images:
        turns[image.kind] = turns.get(image.kind, -1) + 1
        ordered.append((turns[image.kind], image))
    ordered.sort(key=lambda pair: pair[0])
    return sorted((image for _, image in ordered[: setting.count]), key=lambda image: image.kind)


class _Results:
    """What the subject makes of images.

    Attributes:
        reasons: by number, '' for what the index holds.
        without: the same of an index that asked no DALI.
        errors: of the loader, for what the index holds.
        pixels: by number.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.reasons: dict[int, str] = {}
        self.without: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.pixels: dict[int, np.ndarray] = {}
        self._runs = 0

    def run(self, images: dict[int, Made]) -> None:
        """All of them in one process; where it dies, halves, until it is known of which image."""
        self._runs += 1
        folder = self._setting.folder / f"run-{self._runs}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sides = {}
        for number, image in images.items():
            (folder / f"{number:04d}").write_bytes(image.data)
            sides[f"{number:04d}"] = _side(image)
        (folder / "images.json").write_text(json.dumps(sides))
        subject = self._setting.subject
        ended = subprocess.run(
            [str(subject.python), str(_WORKER), str(folder)],
            cwd=subject.repository,
            env={**subject.environment(), "PYTHONPATH": str(subject.repository)},
            capture_output=True,
            text=True,
        )
        if ended.returncode == 0:
            self._read(folder)
        elif len(images) > 1:
            numbers = list(images)
            middle = len(numbers) // 2
            for half in (numbers[:middle], numbers[middle:]):
                self.run({number: images[number] for number in half})
        else:
            told = f"{_DIED} with status {ended.returncode}: {ended.stderr.strip()[-200:]}"
            self.reasons |= dict.fromkeys(images, told)

    def _read(self, folder: Path) -> None:
        for name, into in (
            ("reasons", self.reasons),
            ("without", self.without),
            ("errors", self.errors),
        ):
            found = json.loads((folder / f"{name}.json").read_text())
            into |= {int(number): reason for number, reason in found.items()}
        with np.load(folder / "pixels.npz") as pixels:
            self.pixels |= {int(number): pixels[number] for number in pixels.files}


def _side(image: Made) -> int:
    """Of the square that is compared; of any size where nothing is to be read."""
    wanted = _wanted(image)
    return 8 if wanted is None else min(wanted.shape[:2])


def _wanted(image: Made) -> np.ndarray | None:
    """``[H, W, 3]`` of 0..255, as it must be shown; None where Pillow reads nothing."""
    if image.truth is not None:
        return image.truth
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(image.data)) as opened:
                opened.load()
                return _shown(opened)
        except Exception:  # of many kinds
            return None


def _shown(opened: Image.Image) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(opened)
    except Exception:  # EXIF that is none
        upright = opened
    if upright.mode.startswith("I"):
        grey = np.asarray(upright).astype(float) / 257
        return np.repeat(grey[..., None], 3, -1)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB")).astype(float)


def _judge(image: Made, results: _Results, number: int) -> str:
    """What is wrong, or nothing."""
    reason = results.reasons[number]
    if reason.startswith(_DIED):
        return reason
    if bool(reason) != bool(results.without[number]):
        return f"with DALI {reason!r}, without {results.without[number]!r}"
    if reason:
        if not image.refused:
            return f"refused: {reason}"
        found = re.search(image.refused, reason, re.IGNORECASE)
        return "" if found else f"refused for another reason than {image.refused!r}: {reason}"
    if error := results.errors.get(number):
        return f"accepted, and the loader ends: {error}"
    if image.refused and not image.either:
        return f"accepted, though {image.refused}"
    wanted = _wanted(image)
    if wanted is None:
        return "accepted, though Pillow cannot read it"
    height, width = wanted.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Else half a pixel would lie between the squares.
    assert (height - width) % 2 == 0
    square = wanted[top : top + side, left : left + side]
    difference = np.abs(results.pixels[number] - square).max()
    return "" if difference <= _TOLERANCE else f"differs by {difference:.0f} of 255"


if __name__ == "__main__":
    main({"images": (campaign, COUNT)}, __doc__)
