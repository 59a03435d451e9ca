"""The whole configuration of a run, as frozen dataclasses that refuse what cannot work.

A recipe builds a ``Config``; the command line overrides any field of it (``--optimizer.lr 1e-4``).
The docstring under a field is its help text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Literal

import tyro

from clipfast.data.fields import FIELDS, Fields
from clipfast.data.sidecar.options import Sidecar
from clipfast.data.synthetic_name import synthetic_samples
from clipfast.engine.ranges import ALIASES, Range, check_fields
from clipfast.engine.ranges import ConfigError as ConfigError
from clipfast.engine.renamed import renamed_field
from clipfast.engine.sources import caption_files, named_sources, training_sources
from clipfast.models.layers import Activation
from clipfast.models.recompute import Recompute
from clipfast.storage.options import StoreOptions

Precision = Literal["auto", "bf16", "fp16", "fp32", "tf32"]
Statistics = Literal["fp32", "bf16", "fp16"]
Weights = Literal["fp32", "remainder", "stochastic"]

# Names of checkpoints hold eight digits.
MOST_STEPS = 99_999_999
# How tables of captions name the held-out pairs of --logging.validation.
VALIDATION = "validation"
_MOST = 2**31 - 1
_COUNT = Range(1, _MOST)
_LARGEST = 3.4e38  # of float32


def _stays_below(name: str) -> bool:
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@renamed_field("checkpoint", "recompute", option="--model")
@dataclass(frozen=True)
class ModelOptions:
    """Which towers are trained."""

    name: str = "RN50"
    """One of clipfast.models.list_models(): RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32,
    ViT-B/16, ViT-L/14, ViT-L/14@336px, RN-tiny, ViT-tiny."""

    weights: str | None = None
    """Start from these weights: an OpenAI archive, an OpenCLIP .pt, or .safetensors. Position
    embeddings of another grid are interpolated."""

    activation: Activation = "quick_gelu"
    """Of the transformer blocks. quick_gelu: the paper's, and that of OpenCLIP's models whose names
    end in -quickgelu. gelu: that of OpenCLIP's other models. Weights do not fit the other one, and
    few files say theirs."""

    recompute: Recompute = "none"
    """What residual blocks keep for the backward pass; the gradients stay the same. none: all;
    selective: products, convolutions and attention, about half the memory, the rest is computed
    again; full: the blocks' inputs, a fraction of the memory, about a third more time; auto: the
    first of these that fits into the memory that is free."""

    compile: Literal["auto", "none", "blocks"] = "auto"
    """blocks: torch.compile every residual block, equal ones once; the first steps take longer.
    auto: blocks on a GPU of compute capability 8.0 or newer with Triton, below ZeRO stage 3 and
    not with selective recomputation; none elsewhere."""

    sync_bn: bool = False
    """Batch statistics of a ResNet are those of all ranks' pairs: of their micro-batches that are
    encoded at the same time. Without it they are those of a rank's micro-batch."""

    bn_batch: Annotated[int | None, tyro.conf.arg(aliases=[ALIASES["--model.bn-batch"]])] = None
    """Batch statistics of a ResNet are those of so many pairs of the global batch, one after
    another, whatever ranks and micro-batches there are. It divides the micro-batch, or without
    micro-batches is a multiple of a rank's share. Running statistics then move once a step, toward
    the mean of all groups."""

    def __post_init__(self) -> None:
        check_fields(self, "--model", bn_batch=_COUNT)
        _require(
            self.bn_batch is None or not self.sync_bn,
            "--model.sync-bn and --bn-batch are two answers to one question. --bn-batch N says how "
            "many pairs share statistics, of all ranks where N is the batch: pass one of them",
        )
        _require(
            self.weights != "",
            "--model.weights is empty: name a file, or leave the option out to start at random",
        )


@dataclass(frozen=True)
class LossOptions:
    """What is minimised."""

    name: str = "contrastive"
    """One of clipfast.loss.list_objectives(). contrastive: the symmetric softmax loss of the
    paper. A recipe adds its own with clipfast.loss.register_objective."""


@dataclass(frozen=True)
class DataConfig:
    """Shards and how they are read.

    What came later is given by name, so that positions mean what they meant.
    """

    train: tuple[str, ...] = ()
    """Training shards: paths, brace ranges ('shards/{00000..41407}.tar'), globs or folders, several
    allowed; 'sample', 'sample/noto' and 'sample/twemoji' name the embedded emoji drawings.
    'synthetic' or 'synthetic:N' alone: random images and captions, N to an epoch, to measure a step
    without data. NAME=PATTERN names a source, such as cc='/data/cc/*.tar'."""

    weights: dict[str, float] = field(default_factory=dict, kw_only=True)
    """Of each named source, such as cc 2 laion 1: an epoch takes samples in this ratio. Each sample
    of a source is seen as often as its others, or once more. Empty: each sample once per epoch."""

    repeats: dict[str, float] = field(default_factory=dict, kw_only=True)
    """Instead of weights, how often an epoch passes through a named source; 1 where nothing is
    said."""

    epoch_samples: int = field(default=0, kw_only=True)
    """Samples of an epoch, with weights or alone. 0: as many as there are."""

    eval: tuple[str, ...] = ()
    """Shards to measure retrieval on, each pattern by itself, such as coco='coco/{0..3}.tar'. The
    name stands in tables and in tags, eval/coco/image_to_text/R@1; a pattern without one gets the
    last part of its path that says something. Empty: no retrieval."""

    select: str = field(default="", kw_only=True)
    """A file that says which samples of the training shards are used (docs/data.md), as python -m
    clipfast.curate select writes it; no shard is written anew. Empty: all."""

    captions: tuple[str, ...] = field(default=FIELDS.captions, kw_only=True)
    """Where captions are, the first that a shard has. txt: the member that is the caption.
    json:caption: the text under this key of the .json beside the image; json:caption,alt: those
    under several keys. Of all shards that the run reads."""

    caption_choice: Literal["drawn", "first"] = field(default="drawn", kw_only=True)
    """Which of several captions an image is trained with. drawn: one in each epoch, by seed, epoch
    and sample. first: the first that says something. Retrieval takes all."""

    caption_files: tuple[str, ...] = field(default=(), kw_only=True)
    """Parquet or CSV tables with the captions, if they are not in the shards: '{shard}.parquet' is
    one beside each tar, any other path one of all shards; brace ranges and globs too. They are of
    --data.train and --logging.validation, or NAME=TABLE: of one source, of one set of --data.eval,
    or of validation."""

    caption_key: str = field(default="key", kw_only=True)
    """Column of these tables with the key of the sample, as its tar has it."""

    caption_columns: tuple[str, ...] = field(default=("caption",), kw_only=True)
    """Columns with captions. A sample has all that say something, of all its rows."""

    caption_shard: str = field(default="shard", kw_only=True)
    """Column with the name of the tar, in a table of all shards whose keys are not unique. It need
    not be there."""

    caption_missing: Literal["leave-out", "own"] = field(default="leave-out", kw_only=True)
    """What is done with samples without a row. leave-out: they are not trained on. own: they take
    the caption in the tar, those that have one."""

    caption_cache: str = field(default="", kw_only=True)
    """A folder on a disk of each machine for captions in the order of the shards, which its ranks
    and later runs share. Empty: one of this user in the machine's temporary folder."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest side of the random square crop, as fractions of the short side."""

    decode: Literal["exact", "scaled"] = "exact"
    """How training images are decoded. exact: whole. scaled: a JPEG whose smallest crop is 2, 4 or
    8 times what the model reads is decoded at a half, a quarter or an eighth, on the CPU, which is
    faster; pixels then differ by some levels (docs/data.md). Evaluations decode whole."""

    shuffle_window: int = 262_144
    """Samples shuffled together, over all ranks; shards are shuffled in any case."""

    threads: int = 0
    """CPU threads a rank uses to read and decode. 0: four with a GPU, else as many as torch."""

    on_error: Literal["stop", "skip"] = "stop"
    """What a broken training sample does. stop: it ends the run. skip: it is left out and named, in
    the log and in skipped.tsv of the run's folder, and the next good one of the same order takes
    its place, the same on any number of ranks and after a resume. Evaluations always stop: with
    fewer pairs their numbers would be others."""

    max_errors: int = 1000
    """With skip: more broken samples than this, each counted once over all ranks, end the run."""

    store: StoreOptions = field(default_factory=StoreOptions, kw_only=True)
    """Where shards in stores are, and how long a run waits for one."""

    cache: str = field(default="", kw_only=True)
    """A folder on a disk of each machine for copies of shards in stores: they are fetched whole,
    ahead of their use, and shared by the ranks of a machine. Empty: no copies."""

    cache_gb: float = field(default=100.0, kw_only=True)
    """Gigabytes that the copies take together, at most. A window of shuffling should fit twice."""

    prefetch: int = field(default=0, kw_only=True)
    """Batches that a rank reads ahead of its decoder and keeps as files in memory. 0: 4; with
    micro-batches 4 of those. More of them bridge a store that is slow for a while."""

    eval_batch_size: int = 256
    """Images a rank encodes at a time in evaluation."""

    eval_limit: int = 50_000
    """Evaluate on at most this many pairs of each pattern."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "--data",
            shuffle_window=Range(1, 2**62),
            cache_gb=Range(above=0, most=1e9),
            prefetch=Range(0, 4096, why="0 lets clipfast choose"),
            threads=Range(0, 4096, why="0 lets clipfast choose"),
            max_errors=Range(0, _MOST, why="0 bears with none"),
            epoch_samples=Range(0, 2**62, why="0 takes as many as there are"),
            eval_batch_size=Range(1, 2**20),
            eval_limit=_COUNT,
        )
        check_fields(
            self.store,
            "--data.store",
            in_flight=Range(1, 4096),
            patience=Range(0, 1_000_000, why="0 asks once"),
        )
        _require(not self.store.problem(), f"--data.store.{self.store.problem()}")
        low, high = self.scale
        _require(
            0.0 < low <= high <= 1.0,
            f"--data.scale must satisfy 0 < smallest <= largest <= 1; got {low} {high}",
        )
        try:
            named_sources(self.eval)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        try:
            synthetic_samples(self.train)
        except ValueError as error:
            raise ConfigError(f"--data.train: {error}") from error
        try:
            sources = training_sources(self.train)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for option, named in (("weights", self.weights), ("repeats", self.repeats)):
            _require(
                isinstance(named, Mapping),
                f"--data.{option} must have a number for each named source; got {named!r}",
            )
            for name, value in named.items():
                _require(
                    0 < value < math.inf,
                    f"--data.{option} {name} must be above 0; got {value}",
                )
            _require(
                set(named) <= set(sources),
                f"--data.{option}: {', '.join(sorted(set(named) - set(sources)))} is no source of "
                "--data.train: name sources there, such as cc='/data/cc/*.tar'",
            )
        _require(
            not self.weights or set(self.weights) == set(sources),
            f"--data.weights: {', '.join(sorted(set(sources) - set(self.weights)))} has no weight: "
            "give each source of --data.train one",
        )
        _require(
            not self.repeats or not (self.weights or self.epoch_samples),
            "--data.repeats and --data.weights or --data.epoch-samples are two answers to one "
            "question: pass one of them",
        )
        try:
            Fields(captions=self.captions)
        except ValueError as error:
            raise ConfigError(f"--data.captions: {error}") from error
        self._check_caption_files(sources)

    def _check_caption_files(self, sources: Mapping[str, object]) -> None:
        try:
            named = self._sidecars
        except ValueError as error:
            raise ConfigError(f"--data.caption-files: {error}") from error
        known = {"", VALIDATION, *sources, *self.eval_sources}
        if unknown := sorted(set(named) - known):
            raise ConfigError(
                f"--data.caption-files: {unknown[0]!r} is no source of --data.train, no set of "
                f"--data.eval and not {VALIDATION!r}"
            )

    @property
    def train_patterns(self) -> tuple[str, ...]:
        """The patterns of ``train`` without names."""
        named = training_sources(self.train)
        return tuple(p for patterns in named.values() for p in patterns) or self.train

    @property
    def fields(self) -> Fields:
        """Which members of a sample are image and caption."""
        return Fields(captions=self.captions)

    @property
    def _sidecars(self) -> dict[str, Sidecar]:
        """Tables of captions by the names of what they are of."""
        return {
            name: Sidecar(
                files,
                self.caption_key,
                self.caption_columns,
                self.caption_shard,
                self.caption_missing,
            )
            for name, files in caption_files(self.caption_files).items()
        }

    @property
    def training_captions(self) -> dict[str, Sidecar]:
        """Tables of captions of ``train``, by the names of its sources; "" is of the others."""
        mine = {"", *training_sources(self.train)}
        return {name: each for name, each in self._sidecars.items() if name in mine}

    def captions_in(self, name: str) -> Sidecar | None:
        """The table of captions of a set of ``eval``, by its name, or of ``VALIDATION``."""
        usual = self._sidecars.get("") if name == VALIDATION else None
        return self._sidecars.get(name, usual)

    @property
    def eval_sources(self) -> dict[str, str]:
        """The patterns of ``eval`` by their names."""
        return named_sources(self.eval)

    @property
    def synthetic(self) -> int | None:
        """Samples of an epoch where they are made; None where they are read from shards."""
        return synthetic_samples(self.train)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the model is measured while it trains and at the end."""

    names: tuple[str, ...] = ("retrieval",)
    """Evaluations to run. retrieval: R@1, R@5 and R@10 on every set of --data.eval. Others
    are registered by a recipe, with clipfast.eval.register."""

    tasks: tuple[str, ...] = field(default=(), kw_only=True)
    """What else to measure, each TASK=SET or TASK:NAME=SET: zeroshot, probe and fewshot on labelled
    sets, retrieval on captioned ones, such as zeroshot=cifar10:FOLDER. A set is given as to
    python -m clipfast.eval. The name stands in tags, eval/cifar10/zeroshot/acc1."""

    every: int | None = field(default=None, kw_only=True)
    """Evaluate every so many steps; 0: only at the end. None: as --logging.eval-every-steps, its
    old name, says."""

    limit: int = field(default=0, kw_only=True)
    """Images of a set of --eval.tasks that are looked at, at most, drawn once; 0: all."""

    classnames: dict[str, str] = field(default_factory=dict, kw_only=True)
    """By the name of a set of --eval.tasks, a file with its class names, one a line."""

    templates: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Likewise a file with prompts, {c} in the name's place, or a list such as
    imagenet1k_best7."""

    splits: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Likewise the split that is measured; test where nothing is said."""

    shots: tuple[int, ...] = field(default=(1, 4, 16), kw_only=True)
    """Images per class that fewshot learns from."""

    floors: dict[str, float] = field(default_factory=dict)
    """Scalars and the least they must be at the end, such as
    'eval/sample/noto/image_to_text/R@1 0.85'. A finished run that stays below one, or has not
    measured it, ends with status 1."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "--eval",
            every=Range(0, _MOST, why="0 evaluates at the end only"),
            limit=Range(0, _MOST, why="0 takes all"),
        )
        _require(
            bool(self.shots) and min(self.shots) >= 1,
            f"--eval.shots must be numbers of 1 or more; got {list(self.shots)}",
        )
        for name, floor in self.floors.items():
            _require(
                math.isfinite(floor), f"--eval.floors {name} must be a finite number; got {floor}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decay on everything but gains and biases."""

    lr: float = 5e-4
    """Peak learning rate."""

    beta1: float = 0.9
    """Decay of the first moment."""

    beta2: float = 0.999
    """Decay of the second moment; the paper takes 0.999 for ResNets and 0.98 for ViTs."""

    eps: float = 1e-8
    """Added to the root of the second moment; 1e-8 for ResNets and 1e-6 for ViTs."""

    weight_decay: float = 0.2
    """Decoupled decay of weights and embeddings."""

    clip_norm: float = 0.0
    """Clip the norm of the whole gradient to this; 0 leaves it alone, as the paper does."""

    stats: Statistics = "fp32"
    """What Adam's two moments are kept in. fp16: 4 bytes per parameter instead of 8, scaled in
    blocks and rounded at random, within 1% of fp32's updates; what the paper trained with. bf16: as
    many bytes, 8 times coarser."""

    image_weights: Weights = "fp32"
    """What the image tower's half-precision weights are updated from. fp32: a master of 4 bytes;
    remainder: bf16 and 16 further bits, together the same master in 2 bytes less; stochastic: half
    precision alone, each update rounded at random without bias. Where DeepSpeed holds float32
    masters in any case (--zero-stage 0, --precision fp16 or fp32) remainder is that master, and
    stochastic keeps it to values of half precision: the same training, but no bytes are saved."""

    text_weights: Weights = "fp32"
    """The same for the text tower; the paper's largest ResNet trained with stochastic."""

    def __post_init__(self) -> None:
        share = Range(0, below=1)
        check_fields(
            self,
            "--optimizer",
            lr=Range(above=0, most=1, why="AdamW moves a weight by about so much each step"),
            beta1=share,
            beta2=share,
            # The smallest number of normal precision in float32.
            eps=Range(2.0**-126, 1, why="it keeps the division by a moment of 0 finite"),
            weight_decay=Range(0, why="0 turns decay off"),
            clip_norm=Range(0, _LARGEST, why="0 turns clipping off"),
        )
        _require(
            self.lr * self.weight_decay < 1,
            f"--optimizer.weight-decay {self.weight_decay}: each step multiplies the weights by "
            f"1 - lr x decay, which must stay above 0. With --optimizer.lr {self.lr} it must be "
            f"below {1 / self.lr:g}",
        )

    @property
    def has_exact_weights(self) -> bool:
        """Whether both towers keep float32 masters."""
        return self.image_weights == self.text_weights == "fp32"


@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train and how the learning rate moves: linear warm-up, then cosine to zero."""

    epochs: float = 32.0
    """Passes over the data; ignored where --max-steps is given."""

    warmup_steps: int = 2000
    """Steps of linear warm-up; at most half the run is used where it is shorter than that."""

    max_steps: Annotated[int | None, tyro.conf.arg(aliases=[ALIASES["--schedule.max-steps"]])] = (
        None
    )
    """Length of the run in optimizer steps, for the cosine too."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "--schedule",
            epochs=Range(above=0),
            warmup_steps=Range(0, _MOST),
            max_steps=Range(1, MOST_STEPS),
        )


@dataclass(frozen=True)
class ZeroConfig:
    """DeepSpeed's ZeRO: what the ranks share among them instead of each holding all of it."""

    stage: Annotated[
        Literal["auto", 0, 1, 2, 3], tyro.conf.arg(aliases=[ALIASES["--zero.stage"]])
    ] = "auto"
    """0: nothing; 1: optimizer states; 2: gradients too; 3: parameters too. auto: 1; 0 for one
    process in float32, where there is nothing to share and no master copy to keep; 2 for
    micro-batches in bf16 with remainder or stochastic weights, whose gradients stage 1 would sum in
    bf16 and the others sum in float32."""

    def __post_init__(self) -> None:
        check_fields(self, "--zero")


@dataclass(frozen=True)
class LoggingConfig:
    """What a run writes and shows."""

    dir: str = "runs"
    """Everything a run leaves goes to DIR/NAME: metrics.jsonl, TensorBoard events, checkpoints,
    final weights."""

    name: str = ""
    """Name of the run; empty takes the model's."""

    every_steps: int = 10
    """Write metrics every so many steps; reading the loss waits for the device."""

    eval_every_steps: int = 0
    """The old name of --eval.every."""

    validation: tuple[str, ...] = ()
    """Held-out shards whose loss is measured: the run's own objective, in evaluation mode, over at
    most --data.eval-limit pairs. Empty: none."""

    validation_every: int = 0
    """Measure the loss of held-out pairs every so many steps; 0: only at the end."""

    validation_batch: int = 0
    """Pairs that meet one another in that loss, over all ranks; among more it is larger. 0: as many
    as in training, or all there are where they are fewer."""

    tensorboard: bool = True
    """Write TensorBoard scalars."""

    wandb: str = ""
    """Write to this project of Weights & Biases; empty: not. WANDB_MODE=offline writes to the run's
    folder alone. A resumed run goes on in the same run there."""

    trackio: str = ""
    """Write to this project of Trackio; empty: not. A resumed run goes on in the same run there."""

    profile: Annotated[int, tyro.conf.arg(aliases=[ALIASES["--logging.profile"]])] = 0
    """Trace so many steps of this start, behind its first three: a file per rank for
    ui.perfetto.dev, and a summary of compute, communication and data. 0: none."""

    figures: str = ""
    """Folder for pictures drawn at the end: curves.png, and NAME.png of each evaluation that draws
    one. Empty: none."""

    progress: bool = True
    """Show a progress bar on rank 0."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "--logging",
            every_steps=_COUNT,
            eval_every_steps=Range(0, _MOST, why="0 evaluates at the end only"),
            validation_every=Range(0, _MOST, why="0 measures at the end only"),
            validation_batch=Range(0, _MOST, why="0 takes the batch of training"),
            profile=Range(0, 1000, why="a trace takes some megabytes for each step"),
        )
        _require(
            not self.name or _stays_below(self.name),
            f"--logging.name {self.name!r} must name a folder below --logging.dir",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the whole state, from which a run goes on exactly."""

    every_steps: int = 1000
    """Save every so many steps; 0: not by steps."""

    every_minutes: float = 0.0
    """Save every so many minutes as well; 0: not by time."""

    keep: int = 2
    """Number of checkpoints kept, the newest; older ones are deleted once a newer one is
    complete."""

    keep_every: int = 0
    """Save every so many steps as well, and keep these checkpoints for good; 0: none."""

    background: bool = False
    """Train on while a checkpoint is written, from a copy of it in the host's memory. The memory
    must have room for it: as much as the rank writes. Pinned where there is a GPU."""

    resume: Annotated[str | None, tyro.conf.arg(aliases=[ALIASES["--checkpoint.resume"]])] = None
    """'latest' goes on from the newest intact checkpoint of this run (from the beginning where
    there is none); a path names one, of another run too, from which a new run then branches off."""

    upload: str = field(default="", kw_only=True)
    """Copy what the run leaves to UPLOAD/NAME of a store, such as s3://bucket/runs: each checkpoint
    once it stands here, the final weights, metrics.jsonl and run.json. Training goes on meanwhile.
    --resume latest looks there too. Empty: not."""

    resume_with_changes: Annotated[
        bool, tyro.conf.arg(aliases=[ALIASES["--checkpoint.resume-with-changes"]])
    ] = False
    """Go on though options or data differ that change what is trained. Without it such a resume is
    refused, and the differences are named."""

    fsync: bool = True
    """Wait until checkpoints and records are on the disk; final weights always are. Without it a
    crash of the machine can cost the newest checkpoint; a crash of the run cannot."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "--checkpoint",
            every_steps=Range(0, _MOST, why="0 saves none by steps"),
            every_minutes=Range(0, why="0 saves none by time"),
            keep=_COUNT,
            keep_every=Range(0, _MOST, why="0 keeps none for good"),
        )
        _require(
            self.resume != "",
            "--resume is empty: pass 'latest' or a path, or leave the option out to start anew",
        )
        _require(
            not self.upload.lower().startswith(("http://", "https://")),
            f"--checkpoint.upload {self.upload}: nothing can be written to a web server. Pass "
            "s3://BUCKET/FOLDER, gs://, az:// or a folder; --data.store.endpoint says where a "
            "store is",
        )

    def kept_for_good(self, first: int, last: int) -> int:
        """How many checkpoints of these steps are kept for good.

        Args:
            first: step that the run goes on from.
            last: step that it ends at.
        """
        return last // self.keep_every - first // self.keep_every if self.keep_every else 0


@dataclass(frozen=True)
class Config:
    """A training run."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    loss: LossOptions = field(default_factory=LossOptions)

    batch_size: int = 32_768
    """Pairs in the global batch, over all ranks: every image meets every text of it."""

    micro_batch: int | Literal["auto"] | None = None
    """Pairs that a rank encodes at a time. None: its whole share of the batch. Below it, the share
    is encoded twice, and the gradients stay exactly those of the whole batch. auto: the largest
    part of the share that is counted to fit, chosen together with --model.recompute auto; a resumed
    run keeps what it had."""

    keep_graphs: int | Literal["auto"] = 0
    """Micro-batches that are encoded once: their graphs stay until the loss is known. The gradients
    are the same bits. auto: as many as are counted to fit. 0 at ZeRO stage 3."""

    precision: Precision = "auto"
    """auto: bf16 where the GPU has it, fp16 with dynamic loss scaling on older GPUs, fp32 on a
    CPU. tf32: fp32 whose matrix products and convolutions a GPU takes in TF32, with 11 bits of each
    factor; under fp32 it takes them in full."""

    seed: int = 0
    """Of initialisation, order and crops."""

    watchdog_seconds: float = 60.0
    """Of several ranks: how long the others wait for one that does not go on. Then all write stack
    traces, the run says who hangs, and ends. A rank that dies, or whose host falls silent, ends the
    run within a minute in any case. Parts that took longer before may take longer again, and what a
    run does for the first time, such as compiling, ten times as long. 0: nobody watches."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "",
            batch_size=Range(2, _MOST, why="one pair alone has no contrast"),
            micro_batch=_COUNT,
            keep_graphs=Range(0, _MOST, why="0 encodes all of them twice"),
            seed=Range(0, 2**63 - 1),
            watchdog_seconds=Range(0, 86_400, why="0 turns the watch off"),
        )

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations; 0: only at the end."""
        asked = self.eval.every
        return self.logging.eval_every_steps if asked is None else asked

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return self.logging.name or self.model.name.lower().replace("/", "-").replace("@", "-")

    def local_batch(self, world_size: int) -> int:
        """This rank's share of the batch.

        Raises:
            ConfigError: it does not divide.
        """
        _require(
            self.batch_size % world_size == 0,
            f"--batch-size {self.batch_size} does not divide by {world_size} ranks: pass "
            f"--batch-size {-(-self.batch_size // world_size) * world_size}, or other ranks",
        )
        return self.batch_size // world_size

    def micro_batches(self, world_size: int) -> int:
        """Number of micro-batches a rank's share is cut into.

        Raises:
            ConfigError: it does not divide.
        """
        local_batch = self.local_batch(world_size)
        # What auto stands for is found when the memory is known.
        asked = local_batch if self.micro_batch == "auto" else self.micro_batch
        micro_batch = min(asked or local_batch, local_batch)
        _require(
            local_batch % micro_batch == 0,
            f"--micro-batch {micro_batch} does not divide a rank's share of {local_batch} "
            f"(--batch-size {self.batch_size} over {world_size} ranks): pass "
            f"--micro-batch {largest_divisor(local_batch, micro_batch)}",
        )
        return local_batch // micro_batch


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
