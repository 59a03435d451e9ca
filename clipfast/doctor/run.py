"""One rank's examination, from its command line to its exit status."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TextIO

import torch

import clipfast
from clipfast.doctor.check import Check
from clipfast.doctor.checks import CHECKS
from clipfast.doctor.examination import Examination, RankZeroLostError
from clipfast.doctor.exchange import Exchange
from clipfast.doctor.finding import Finding, failure
from clipfast.doctor.meeting import meet_all
from clipfast.doctor.options import DoctorConfig, read_options
from clipfast.doctor.report import summary, write_json
from clipfast.doctor.situation import Situation
from clipfast.engine.config import ConfigError
from clipfast.engine.environment import Launched, read_environment
from clipfast.engine.launch import Process, current_process
from clipfast.engine.plan import RunPlan, decide
from clipfast.files import explain

# A launcher ends every rank once one has failed: rank 0 speaks first.
_AFTER_RANK_ZERO = 3.0
_LEAVE_SECONDS = 3.0


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Examine as one rank of all, and end the process.

    Args:
        arguments: without the program's name; None takes ``sys.argv``.
    """
    began = time.monotonic()
    config, wrong = read_options(arguments)
    names = [check.name for check in CHECKS]
    if unknown := [name for name in config.only if name not in names]:
        wrong = f"--only {' '.join(unknown)}: no such check; there are {', '.join(names)}"
        config = replace(config, only=("flags", *config.only))
    try:
        launched = read_environment()
    except ConfigError as error:
        finding = Finding("failure", *_parts(str(error)), check="launcher")
        print("\n".join(finding.lines()), flush=True)
        _leave(1)
    situation = _situation(config, launched, {"options": wrong} if wrong else {})
    exchange, met = meet_all(situation.process, config.patience)
    situation.exchange = exchange
    if not exchange.is_main or (launched.rank and len(exchange.ranks) == 1):
        _follow(situation, met)
    person, log = _log_to_file(launched.rank)

    def say(finding: Finding) -> None:
        print("\n".join(finding.lines()), file=person, flush=True)

    print(_title(situation), file=person, flush=True)
    examination = Examination(situation, say)
    examination.add("meeting", met)
    status = examination.run(_wanted(situation))
    if config.json:
        try:
            write_json(Path(config.json), situation, examination, time.monotonic() - began)
        except OSError as error:
            reason = explain(error, config.json)
            examination.add("json", [failure(f"not written: {reason}", "Give another --json")])
            status = 1
    if any(finding.level == "failure" for finding in examination.findings):
        print(f"logs of the ranks: {log.parent}/{_log_prefix()}*", file=person)
    else:
        log.unlink(missing_ok=True)
    lines = summary(examination.findings, time.monotonic() - began, status)
    print(lines, file=person, flush=True)
    exchange.post("left", True)
    exchange.collect("left", dict.fromkeys(exchange.ranks[1:], _LEAVE_SECONDS))
    _leave(status)


def _follow(situation: Situation, met: Sequence[Finding]) -> NoReturn:
    """Another rank than 0: look, answer, and say nothing."""
    exchange, rank = situation.exchange, situation.process.rank
    if len(exchange.ranks) == 1:
        time.sleep(_AFTER_RANK_ZERO)
        print("\n".join(Finding("failure", met[0].seen, met[0].remedy, (rank,), "meeting").lines()))
        _leave(1)
    _, log = _log_to_file(rank)
    status = 1
    try:
        status = Examination(situation, lambda finding: None).run(_wanted(situation))
        if not status:
            log.unlink(missing_ok=True)
        exchange.hear("left", _LEAVE_SECONDS)
        exchange.post(f"left/{rank}", True)
    except (RankZeroLostError, RuntimeError) as error:
        # Its store goes with it.
        print(f"rank {rank} lost rank 0: {error}", file=sys.stderr, flush=True)
    _leave(status)


def _wanted(situation: Situation) -> list[Check]:
    """The checks that were asked for; alone, without the other ranks, no collective one."""
    only = situation.config.only
    is_whole = len(situation.exchange.ranks) == situation.process.world_size
    return [
        check
        for check in CHECKS
        if (not only or check.name in only) and (is_whole or check.terms is None)
    ]


def _situation(config: DoctorConfig, launched: Launched, problems: dict[str, str]) -> Situation:
    try:
        process = current_process()
    except ConfigError as error:
        problems["devices"] = str(error)
        process = Process(**vars(launched), device=torch.device("cpu"))
    plan: RunPlan | None = None
    if "options" not in problems:
        try:
            plan = decide(config, process)
        except (ConfigError, ValueError) as error:
            problems["options"] = str(error)
    exchange = Exchange(launched.rank, (launched.rank,))
    return Situation(config, process, plan, problems, exchange)


def _title(situation: Situation) -> str:
    process, plan = situation.process, situation.plan
    of_run = (
        f"{plan.config.model.name}, batch {plan.config.batch_size}, {plan.dtype}, " if plan else ""
    )
    return (
        f"clipfast.doctor {clipfast.__version__}: {of_run}{process.world_size} x "
        f"{process.device.type}, rank 0 on {situation.host}"
    )


def _parts(message: str) -> tuple[str, str]:
    words, _, remedy = message.partition(". ")
    return words, remedy


def _log_prefix() -> str:
    return f"clipfast-doctor-{os.environ.get('MASTER_PORT', 'alone')}-rank"


def _log_to_file(rank: int) -> tuple[TextIO, Path]:
    """Send what libraries print to a file; a stream for the person is left."""
    sys.stdout.flush()
    sys.stderr.flush()
    person = os.fdopen(os.dup(1), "w")
    descriptor, name = tempfile.mkstemp(prefix=f"{_log_prefix()}{rank}-", suffix=".txt")
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    return person, Path(name)


def _leave(status: int) -> NoReturn:
    """End at once: a check that hangs would keep the interpreter waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
