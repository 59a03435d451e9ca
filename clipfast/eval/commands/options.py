"""Options that several subcommands share, and what is made of them."""

from __future__ import annotations

import argparse
import functools
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.models import LoadedModel, load_model
from clipfast.eval.results import ResultFile
from clipfast.eval.sets import LabelledSet, open_set
from clipfast.eval.sharing import Sharing
from clipfast.eval.zeroshot.cache import ClassifierCache

# One rank may fit a probe for hours while the others wait; one that fails tells them.
_PATIENCE = timedelta(hours=12)
_Encoder = TypeVar("_Encoder", bound=ImageEncoder)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Kept:
    """A model that several tasks share, as ``options.kept``.

    Attributes:
        loaded: the model.
        encoder: of it.
    """

    loaded: LoadedModel
    encoder: ImageEncoder


def add_model_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The model, and where it computes.

    Args:
        parser: of a subcommand; `loaded_model` and `encoder_of` read these options.
        several: ``--weights`` takes several.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        required=True,
        nargs="+" if several else None,
        help="a file of weights, a run's folder, or a checkpoint's folder",
    )
    group.add_argument("--model", help="its name, such as ViT-B/32; default: as the weights tell")
    group.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of the model, where the weights do not tell",
    )
    group.add_argument("--batch-size", type=int, default=64, help="images at a time on one rank")
    group.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")
    group.add_argument("--precision", choices=tuple(_DTYPES), default="fp32")
    group.add_argument(
        "--threads",
        type=int,
        help="CPU threads that decode; default: at most 8, and half of the cores on a CPU",
    )
    group.add_argument(
        "--resize",
        choices=("exact", "pillow"),
        default="exact",
        help="exact: as in training; pillow: the very pixels of OpenCLIP and CLIP_benchmark",
    )


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """The labelled set: ``clipfast.eval.sets.open_set`` takes these.

    Args:
        parser: of a subcommand.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--data", required=True, help="a folder, shards, or NAME:FOLDER")
    group.add_argument("--split", default="test")
    group.add_argument("--classnames", type=Path, help="file with a class name per line")
    group.add_argument("--templates", type=Path, help="file with prompts, {c} in the name's place")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go.

    Args:
        parser: of a subcommand.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    group.add_argument("--language", default="en", help="of names and prompts, for the results")
    group.add_argument(
        "--skip-existing", action="store_true", help="leave alone what has a result already"
    )


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Where classifiers are kept; `cache_of` reads it.

    Args:
        parser: of a subcommand that has ``add_output_options``.
    """
    parser.add_argument(
        "--cache", type=Path, help="folder of classifiers; default: `classifiers` in --out"
    )


def cache_of(options: argparse.Namespace) -> ClassifierCache:
    """The classifiers of ``add_cache_option``.

    Args:
        options: as parsed.
    """
    return ClassifierCache(options.cache or options.out / "classifiers")


def loaded_model(options: argparse.Namespace) -> LoadedModel:
    """The model of ``add_model_options``.

    Args:
        options: as parsed.

    Raises:
        ValueError: the weights cannot be read, or are not of that model.
    """
    kept = _kept(options)
    if kept is not None:
        return kept.loaded
    return load_model(options.model, options.weights, activation=options.activation)


def set_of(options: argparse.Namespace) -> LabelledSet:
    """The set of ``add_set_options``.

    Args:
        options: as parsed.

    Raises:
        ValueError: see ``open_set``.
    """
    return open_set(
        options.data,
        split=options.split,
        classnames=options.classnames,
        templates=options.templates,
    )


def begin(
    options: argparse.Namespace, dataset: str, task: str
) -> tuple[ResultFile, LoadedModel | None, dict[str, Any]]:
    """Where the result goes, and the model; no model where --skip-existing finds a result.

    With --model the weights are not read to find that out.

    Args:
        options: of ``add_model_options`` and ``add_output_options``.
        dataset: name of the set.
        task: of the result.

    Returns:
        The file, the model or None, and what is there already.

    Raises:
        ValueError: the weights cannot be read, or what is there is of others.
    """
    loaded = None
    if options.model is None or not options.skip_existing:
        loaded = loaded_model(options)
    name = options.model if loaded is None else loaded.name
    file = ResultFile(options.out, dataset, name, str(options.weights), task, options.language)
    if options.skip_existing and (existing := file.existing()) is not None:
        print(f"{file.path} is there already")
        return file, None, existing
    return file, loaded or loaded_model(options), {}


def require_same(path: Path, differing: dict[str, bool]) -> None:
    """Refuse what --skip-existing found where it is of other options, which its name does not tell.

    Args:
        path: of the result.
        differing: whether it is another one, by what a person can change.

    Raises:
        ValueError: something differs.
    """
    odd = [name for name, is_other in differing.items() if is_other]
    if odd:
        raise ValueError(
            f"{path} is of other options ({', '.join(odd)}): pass another --out, or leave out "
            "--skip-existing"
        )


def encoder_of(options: argparse.Namespace, loaded: LoadedModel) -> ImageEncoder:
    """The encoder of ``add_model_options``; under a launcher its ranks share the work.

    Args:
        options: as parsed.
        loaded: of ``loaded_model``.

    Raises:
        ValueError: an option is out of its range, or a device is not here.
    """
    kept = _kept(options)
    if kept is not None:
        return kept.encoder
    return make_encoder(ImageEncoder, options, loaded)


def make_encoder(
    kind: type[_Encoder], options: argparse.Namespace, loaded: LoadedModel
) -> _Encoder:
    """An encoder of some kind; see ``encoder_of``.

    Args:
        kind: ``ImageEncoder``, or what takes its arguments.
        options: as parsed.
        loaded: of ``loaded_model``.

    Raises:
        ValueError: an option is out of its range, or a device is not here.
    """
    sharing = launched()
    return kind(
        loaded.model,
        loaded.preprocessing,
        options.batch_size,
        *computing(options),
        sharing.rank,
        sharing.world_size,
        options.threads,
        options.resize,
    )


def _kept(options: argparse.Namespace) -> Kept | None:
    return getattr(options, "kept", None)


@functools.cache
def launched() -> Sharing:
    """This process among those of ``torchrun``; its process group is there afterwards."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Sharing()
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Sharing(dist.get_rank(), dist.get_world_size())


def computing(options: argparse.Namespace) -> tuple[str, torch.dtype]:
    """The device and the type of ``add_model_options``; without ``--device`` a GPU where one is.

    Args:
        options: as parsed.
    """
    return options.device or _device(), _DTYPES[options.precision]


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device
