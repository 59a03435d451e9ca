"""From a recipe's configuration and the command line to a finished run."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
import tyro

from clipfast.engine.config import Config, ConfigError
from clipfast.engine.environment import (
    claims_to_be_main,
    processes_claimed,
    read_environment,
)
from clipfast.engine.facts import facts
from clipfast.engine.failure import fail, leave_quietly, refuse, refuse_together
from clipfast.engine.launch import current_process, start
from clipfast.engine.openclip import activation_note, answer
from clipfast.engine.plan import decide
from clipfast.engine.recipes import hand_over, plan_instead
from clipfast.engine.renamed import renamed_options
from clipfast.engine.rendezvous import meet
from clipfast.engine.requests import INTERRUPTED, end_while_starting
from clipfast.engine.sinks import require_packages
from clipfast.engine.startlog import LOGS, StartLog
from clipfast.engine.typed import idle_options
from clipfast.engine.watch import end_with_launcher
from clipfast.engine.watchdog import Watchdog

if TYPE_CHECKING:
    from clipfast.engine.builders import Builders
    from clipfast.engine.trainer import Result

_KEYBOARD = 130  # what a shell says of it: 128 + SIGINT

_log = logging.getLogger(__name__)
_Asked = TypeVar("_Asked", bound=Config)
_RENAMED = {
    "--model.checkpoint": "--model.recompute",
    "--logging.eval-every-steps": "--eval.every",
}
_NO_DATA = """no training data: pass your shards,
    --data.train 'shards/{00000..41407}.tar'
or try the recipe on the embedded sample of emoji drawings (1,911 concepts by two artists),
    --data.train sample --batch-size 4 --max-steps 2
or measure its step on random pairs, without data,
    --data.train synthetic --max-steps 20
To make shards from images and captions: python -m clipfast.data.pack --help"""


def parse(default: _Asked, arguments: Sequence[str] | None = None) -> _Asked:
    """Override a recipe's configuration from the command line.

    Args:
        default: the recipe's.
        arguments: without the program's name; None takes ``sys.argv``. The ``--local_rank`` that
            DeepSpeed's launcher appends is dropped: the environment says the same. An option in the
            spelling of the version before is taken, and the log says how it is spelled now.

    Returns:
        The run's configuration.

    Raises:
        SystemExit: an option does not exist or does not parse; the message says which and why.
        ConfigError: a combination cannot work, or flags of OpenCLIP were typed; the message has
            those to pass here.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments, lines = renamed_options(arguments, _RENAMED)
    for line in lines:
        _log.warning(line)
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--local_rank", "--local-rank"):
            skip = True
        elif not argument.startswith(("--local_rank=", "--local-rank=")):
            kept.append(argument)
    if theirs := answer(kept, processes_claimed()):
        raise ConfigError(theirs)
    kind = type(default)
    return tyro.cli(kind, default=default, args=kept, description=kind.__doc__)


def main(
    default: Config,
    arguments: Sequence[str] | None = None,
    builders: "Builders | None" = None,
) -> "Result":
    """Run a recipe: the last line of each.

    Configuration errors end every rank with status 2 before anything is built on a device. The
    reason is printed once, or once per node where it lies in a node's files. Of an exception that
    ends the run the first rank to meet one prints its traceback.

    Args:
        default: the recipe's configuration.
        arguments: see ``parse``.
        builders: of the run's parts, where a benchmark or a test brings others.

    Returns:
        What the run leaves.

    Raises:
        SystemExit: with status 2 for options that cannot work; 75 for a run that a signal ended and
            that can go on; 130 where Ctrl-C ended it without a checkpoint; 1 for a finished run
            that stayed below one of ``--eval.floors`` or could not write its weights.
    """
    hand_over(default)
    plan_instead(sys.argv[1:] if arguments is None else arguments)
    end_while_starting()
    is_main = claims_to_be_main()
    if not is_main:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # Of other packages warnings alone: setuptools tells of every compiler that it starts.
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(message)s")
    if is_main:
        logging.getLogger("clipfast").setLevel(logging.INFO)
    config = _agreed(default, arguments, is_main)
    try:
        read_environment()
    except ConfigError as error:
        refuse(error, speaks=True)
    try:
        process = current_process()
        _check_files(config)
        plan = decide(config, process)
    except (ConfigError, OSError, ValueError) as error:
        # Once a node: what is missing on one of them may be there on the others. The first rank
        # without a GPU is the only one of its node that knows it.
        first = int(os.environ.get("LOCAL_RANK", 0)) in (0, torch.cuda.device_count())
        refuse(error, speaks=first)
    for line in idle_options(sys.argv[1:] if arguments is None else arguments, plan):
        _log.warning(line)

    try:
        told = facts(plan) if process.world_size > 1 else {}
        meeting = meet(process.rank, process.world_size, facts=told)
    except ConfigError as error:
        refuse(error, speaks=True)
    watchdog = Watchdog(process, config.watchdog_seconds, meeting)
    # Only now: a mistyped option is answered before all of this is imported.
    from clipfast.engine.trainer import Trainer

    if is_main and process.device.type == "cpu":
        print("On the CPU; DeepSpeed's first start compiles a helper, about 40 s", flush=True)
    end_with_launcher()
    log, log_folder = StartLog(), None
    try:
        with log.captured():
            start(process, plan.uses_tf32)
            trainer = Trainer(plan, builders)
        # Before that the folder may be another run's.
        log_folder = plan.folder / LOGS
        log.keep(log_folder, process.rank)
        watchdog.keep_logs(log_folder)
        result = trainer.run()
    except KeyboardInterrupt:
        # While the run was built, or a second time: nothing was saved for it.
        if is_main:
            print("Interrupted by the keyboard, without a checkpoint", file=sys.stderr)
        watchdog.leaves("interrupted", "was interrupted by the keyboard", _KEYBOARD)
        raise SystemExit(_KEYBOARD) from None
    except SystemExit as stop:
        # A signal, while the run was built or measured.
        status = stop.code if isinstance(stop.code, int) else 1
        words = f"was interrupted by a signal, status {status}"
        watchdog.leaves("interrupted", words, status, spoken=False)
        raise
    except ConfigError as error:
        refuse_together(process, error, watchdog)
    except Exception as error:
        fail(process, error, log_folder, watchdog)
        raise
    # Not after a failure: tearing the group down would wait for ranks that wait for this one.
    dist.destroy_process_group()
    watchdog.close()
    if not result.finished:
        raise SystemExit(INTERRUPTED)
    if result.below_floors or result.lost:
        raise SystemExit(1)
    return result


def _agreed(default: Config, arguments: Sequence[str] | None, speaks: bool) -> Config:
    """The configuration, with what every rank finds wrong with it said by one."""
    silence = contextlib.nullcontext() if speaks else contextlib.redirect_stderr(io.StringIO())
    try:
        with silence:
            config = parse(default, arguments)
        _check_names(config)
    except (ConfigError, ValueError) as error:
        refuse(error, speaks)
    except SystemExit as stop:
        # tyro's: a complaint, or --help.
        if stop.code:
            leave_quietly(2, speaks)
        raise
    return config


def _check_store(option: str, path: str) -> None:
    """Refuse what no store can be reached by: what is not installed, a secret, no bucket."""
    from clipfast.storage import storage_of
    from clipfast.storage.clients import OBJECT_SCHEMES, place_of
    from clipfast.storage.paths import scheme_of

    try:
        storage_of(path)
        if scheme_of(path) in OBJECT_SCHEMES:
            place_of(path)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _check_names(config: Config) -> None:
    from clipfast.models.catalogue import get_config

    require_packages(config.logging)
    if not config.data.train:
        raise ConfigError(_NO_DATA)
    try:
        get_config(config.model.name)
    except ValueError as error:
        note = activation_note(config.model.name)
        raise ConfigError(f"--model.name: {error}.{note}") from error


def _check_files(config: Config) -> None:
    from clipfast.data.shards import expand
    from clipfast.storage import configure, storage_of

    configure(config.data.store)
    for option, path in (
        ("--checkpoint.upload", config.checkpoint.upload),
        ("--resume", config.checkpoint.resume or ""),
    ):
        _check_store(option, path)
    weights = config.model.weights
    _check_store("--model.weights", weights or "")
    if weights and not storage_of(weights).exists(weights):
        raise ConfigError(f"--model.weights {weights}: no such file")
    for pattern in config.logging.validation:
        expand(pattern)
    if config.data.synthetic is not None:
        return
    for pattern in (*config.data.train_patterns, *config.data.eval_sources.values()):
        expand(pattern)
