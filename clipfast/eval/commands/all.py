"""``all``: many sets, several tasks and models in one call, and a report at the end."""

from __future__ import annotations

import argparse
import importlib
import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from clipfast.eval.commands.options import (
    Kept,
    add_model_options,
    add_output_options,
    launched,
    loaded_model,
    make_encoder,
)
from clipfast.eval.commands.report import told
from clipfast.eval.many.averages import averages
from clipfast.eval.many.jobs import Job, jobs_of_sets, jobs_of_table
from clipfast.eval.many.root import find_sets
from clipfast.eval.many.weights import folder_names
from clipfast.eval.remembering import RememberingEncoder
from clipfast.eval.report import write_report
from clipfast.eval.running import together
from clipfast.eval.sharing import OtherRankFailed
from clipfast.names import did_you_mean

SHARES_WORK = True
TASKS = ("zeroshot", "probe", "fewshot", "retrieval", "robustness", "groups", "geolocate")
# It looks at features before the projection, this one also at those behind it.
_DEEP, _BOTH = "probe", "fewshot"
# Options of every task, that this command gives.
_COMMON = ("activation", "batch_size", "device", "precision", "threads", "resize", "language")
_SHOWN = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """What could not be done.

    Attributes:
        what: a task of a set, or weights.
        why: for a person.
        jobs: how many were not done.
    """

    what: str
    why: str
    jobs: int = 1


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "run several tasks on many sets, for one model or several, and make a report"
    parser = subparsers.add_parser("all", help=text, description=text)
    add_model_options(parser, several=True)
    group = parser.add_argument_group("data")
    group.add_argument("--data", nargs="+", default=(), help="sets: folders, shards, NAME:FOLDER")
    group.add_argument(
        "--table",
        type=Path,
        help="a table with a row per set: data, tasks, and options such as split",
    )
    group.add_argument(
        "--data-root", type=Path, help="folder in which sets of the catalogue lie, by their names"
    )
    group.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        help="default: retrieval of sets that have captions, zeroshot of others",
    )
    add_output_options(parser)
    parser.add_argument("--report", type=Path, help="its folder; default: `report` in --out")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do everything that can be done, then the averages and the report.

    Args:
        options: as parsed.

    Returns:
        How many tasks were done, averages, and the report's page.

    Raises:
        ValueError: nothing is asked for; an option of a job is wrong; or, at the end, jobs failed.
        OSError: the report cannot be written.
    """
    jobs = _jobs(options)
    every = [options.weights] if isinstance(options.weights, str) else list(options.weights)
    folders = folder_names(every)
    outs = {w: options.out / folders[w] if len(every) > 1 else options.out for w in every}
    # All of them before the first begins: a mistyped option must not be found after hours.
    parsed = {w: [(job, _parsed(job, options, w, outs[w])) for job in jobs] for w in every}
    sharing = launched()
    failures: list[_Failure] = []
    began = time.perf_counter()
    for weights, mine in parsed.items():
        try:
            kept = together(sharing, lambda: _kept(mine[0][1]))  # noqa: B023 - called at once
        except Exception as error:
            failures.append(_failed(weights, error, len(mine)))
            continue
        failures += _do(mine, kept, weights)
    if sharing.rank:
        return {} if not failures else _refuse(failures, len(every) * len(jobs))
    done = len(every) * len(jobs) - sum(failure.jobs for failure in failures)
    print(f"{done} of {len(every) * len(jobs)} tasks in {time.perf_counter() - began:.0f} s")
    found: dict[str, Any] = {"tasks": done, "averages": {}, "page": None}
    if any(options.out.rglob("*.json")):
        found["averages"] = averages(options.out)
        print(*found["averages"].values(), sep="\n")
        made = write_report(options.out, options.report or options.out / "report")
        print(*told(made), sep="\n")
        found["page"] = str(made.page)
    return found if not failures else _refuse(failures, len(every) * len(jobs))


def _jobs(options: argparse.Namespace) -> list[Job]:
    data = [options.data] if isinstance(options.data, str) else list(options.data)
    if options.data_root is not None:
        found, others = find_sets(options.data_root)
        data += [f"{name}:{path}" for name, path in found.items()]
        if others and launched().rank == 0:
            shown = ", ".join(path.name for path in others[:_SHOWN])
            print(f"{len(others)} folders have no name of the catalogue and are left out: {shown}")
    tasks = [options.tasks] if isinstance(options.tasks, str) else options.tasks
    jobs = jobs_of_sets(data, tasks)
    if options.table is not None:
        jobs += jobs_of_table(options.table, tasks)
    if not jobs:
        raise ValueError("nothing to do: name sets with --data, --table or --data-root")
    return jobs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parsed(job: Job, options: argparse.Namespace, weights: str, out: Path) -> argparse.Namespace:
    """The options of a job, as its subcommand parses them."""
    if job.task not in TASKS:
        hint = did_you_mean(job.task, TASKS)
        raise ValueError(f"{job.data}: no task {job.task!r}.{hint} There are: {', '.join(TASKS)}")
    subparsers = _Parser().add_subparsers(dest="command")
    importlib.import_module(f"clipfast.eval.commands.{job.task}").add(subparsers)
    parser = subparsers.choices[job.task]
    flags = {a.dest.replace("_", "-") for a in parser._actions if a.nargs == 0}
    words = ["--weights", weights, "--out", str(out)]
    words += ["--skip-existing"] if options.skip_existing else []
    for name in _COMMON:
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    try:
        return parser.parse_args([*words, *job.words(flags)])
    except ValueError as error:
        raise ValueError(f"{job.data}, {job.task}: {error}") from None


def _kept(options: argparse.Namespace) -> Kept:
    loaded = loaded_model(options)
    return Kept(loaded, make_encoder(RememberingEncoder, options, loaded))


def _do(jobs: Sequence[tuple[Job, argparse.Namespace]], kept: Kept, weights: str) -> list[_Failure]:
    """All jobs of one model; those of one set share its features."""
    encoder = kept.encoder
    assert isinstance(encoder, RememberingEncoder)
    failures = []
    for number, (job, options) in enumerate(jobs, 1):
        tasks = {other.task for other, _ in jobs if other.data == job.data}
        takes_both = _BOTH in tasks or (len(tasks) > 1 and _DEEP in tasks)
        if encoder.sharing.rank == 0:
            print(f"[{number}/{len(jobs)}] {weights}: {job.task} of {job.data}", flush=True)
        options.kept = kept
        command = importlib.import_module(f"clipfast.eval.commands.{job.task}")
        try:
            with encoder.both_layers(takes_both):
                together(encoder.sharing, lambda: command.run(options))  # noqa: B023 - at once
        except Exception as error:
            failures.append(_failed(f"{weights}: {job.task} of {job.data}", error))
        if all(other.data != job.data for other, _ in jobs[number:]):
            encoder.forget()
    return failures


def _failed(what: str, error: Exception, jobs: int = 1) -> _Failure:
    """What goes wrong with one set must not end the others."""
    if not isinstance(error, ValueError | OSError | ImportError):
        _log.error("%s", "".join(traceback.format_exception(error)))
    why = str(error) or type(error).__name__
    if not isinstance(error, OtherRankFailed):
        _log.error("failed: %s: %s", what, why)
    return _Failure(what, why, jobs)


def _refuse(failures: Sequence[_Failure], jobs: int) -> NoReturn:
    count = sum(failure.jobs for failure in failures)
    lines = [f"{count} of {jobs} tasks failed, the others are done:"]
    lines += [f"  {failure.what}: {failure.why}" for failure in failures]
    raise ValueError("\n".join(lines))
