"""What both trainings have in common, taken from the demo's recipe, and the two command lines.

What cannot be made equal:

    start       each draws its own weights from the seed; the distributions are the same
    order       both shuffle all pairs each epoch and leave out the last 119; the orders differ
    crop        both cut a square of 0.9 to 1 of the side, resized once, bicubic. Ours draws the
                side evenly and cuts between pixels; OpenCLIP, through timm, draws the area
                evenly and cuts at whole pixels (Pillow)
    rounding    the order of sums in kernels; AdamW here is clipfast's against torch's
    log-scale   both bound exp(logit_scale) by 100; OpenCLIP bounds it by 1 from below too
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parts.common.peers import open_clip_config
from clipfast.engine import Config
from recipes.emoji import config

OURS, THEIRS = "clipfast", "OpenCLIP"
# The longest caption of the sample, start and end included. Attention is causal and the end is what
# is read, so what would come behind changes nothing; OpenCLIP computes it, and clipfast does not.
LONGEST = 13


@dataclass(frozen=True)
class Contender:
    """A program with its options.

    Attributes:
        program: ``OURS`` or ``THEIRS``.
        context_length: OpenCLIP's ``--force-context-length``, tokens.
        compiled: OpenCLIP's ``--torchcompile``.
        note: What a name has behind it.
    """

    program: str
    context_length: int = 77
    compiled: bool = False
    note: str = ""


CONTENDERS = {
    "clipfast": Contender(OURS),
    "openclip": Contender(THEIRS, LONGEST),
    "openclip-compiled": Contender(THEIRS, LONGEST, True, ", compiled"),
    "openclip-77": Contender(THEIRS, note=", 77 tokens"),
}
GALLERIES = ("sample/noto", "sample/twemoji")
TRAINED_ON = GALLERIES[0]
PAIRS = 1911
# Both programs write here, inside a run's folder.
STARTED = "started.json"
_RUN = "run"


@dataclass(frozen=True)
class Settings:
    """One training.

    Attributes:
        key: Of :data:`CONTENDERS`.
        seed: of weights, order and crops.
        epochs: passes over the pairs, the last partial batch left out.
        threads: of the processor, for products; loading takes one more in either.
    """

    key: str
    seed: int
    epochs: int
    threads: int

    @property
    def contender(self) -> Contender:
        """What is trained."""
        return CONTENDERS[self.key]

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return self.epochs * (PAIRS // recipe().batch_size)

    def command(self, shards: Path, folder: Path) -> list[str]:
        """The program's arguments, without those that start it.

        Args:
            shards: A folder of :func:`shards.write_shards`.
            folder: Where the program writes.
        """
        return (_ours if self.contender.program == OURS else _theirs)(self, shards, folder)

    def weights(self, folder: Path) -> Path:
        """What a finished training leaves in its folder."""
        if self.contender.program == OURS:
            return folder / _RUN / "final.safetensors"
        return folder / _RUN / "checkpoints" / f"epoch_{self.epochs}.pt"


def recipe() -> Config:
    """The demo."""
    return config()


def log_folder(folder: Path) -> Path:
    """Where a training's losses are, in a run's folder."""
    return folder / _RUN


def pattern(shards: Path) -> str:
    """All shards of a folder, as both programs take it."""
    last = max(int(path.stem) for path in shards.glob("*.tar"))
    return f"{shards}/{{{0:02d}..{last:02d}}}.tar"


def model_file(folder: Path) -> Path:
    """The model described to OpenCLIP; its name is that of the file."""
    name = recipe().model.name
    path = folder / f"{name}.json"
    path.write_text(json.dumps(open_clip_config(name), indent=1))
    return path


def _ours(settings: Settings, shards: Path, folder: Path) -> list[str]:
    return [
        *("--data.train", pattern(shards), "--data.eval"),
        *("--seed", str(settings.seed), "--schedule.epochs", str(settings.epochs)),
        *("--logging.dir", str(folder), "--logging.name", _RUN),
        *("--logging.every-steps", "1", "--eval.every", "0", "--logging.figures="),
        # The final weights are written all the same, as OpenCLIP's are.
        *("--logging.no-progress", "--checkpoint.every-steps", "0"),
    ]


def _theirs(settings: Settings, shards: Path, folder: Path) -> list[str]:
    options = recipe()
    optimizer = options.optimizer
    batches = PAIRS // options.batch_size
    smallest, largest = (side**2 for side in options.data.scale)
    return [
        *("--model", options.model.name, "--device", "cpu", "--precision", "fp32"),
        *("--force-context-length", str(settings.contender.context_length)),
        *("--train-data", pattern(shards), "--dataset-type", "webdataset"),
        # Rounded up to whole batches otherwise: an eighth step, of repeated pairs.
        *("--train-num-samples", str(batches * options.batch_size)),
        # More workers would round the batches of an epoch up to a multiple of their number.
        *("--workers", "1", "--batch-size", str(options.batch_size)),
        # Without timm its crop takes no ratio.
        *("--aug-cfg", "use_timm=True", f"scale=({smallest:.4g},{largest:.4g})", "ratio=(1.0,1.0)"),
        *("--epochs", str(settings.epochs), "--warmup", str(options.schedule.warmup_steps)),
        *(
            "--lr-scheduler",
            "cosine",
            "--lr",
            str(optimizer.lr),
            "--wd",
            str(optimizer.weight_decay),
        ),
        *("--beta1", str(optimizer.beta1), "--beta2", str(optimizer.beta2)),
        *("--eps", str(optimizer.eps), "--seed", str(settings.seed)),
        *("--logs", str(folder), "--name", _RUN, "--report-to", "tensorboard"),
        # 0: the last epoch's checkpoint alone is saved.
        *("--log-every-n-steps", "1", "--save-frequency", "0"),
        *(["--torchcompile"] if settings.contender.compiled else []),
    ]
