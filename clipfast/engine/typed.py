"""The command line as it was typed: its options, and those of them that do not count."""

from collections.abc import Iterator, Sequence

from clipfast.engine.plan import RunPlan
from clipfast.models.towers import tower_of

_OF_TABLES = (
    *("--data.caption-key", "--data.caption-columns", "--data.caption-shard"),
    *("--data.caption-missing", "--data.caption-cache"),
)
_OF_SHARDS = (
    *("--data.scale", "--data.decode", "--data.shuffle-window", "--data.threads"),
    *("--data.on-error", "--data.max-errors", "--data.captions", "--data.select"),
    *("--data.weights", "--data.repeats", "--data.epoch-samples", "--data.caption-choice"),
    *("--data.caption-files", *_OF_TABLES),
)
_OF_TASKS = (
    *("--eval.limit", "--eval.classnames", "--eval.templates", "--eval.splits", "--eval.shots"),
)


def typed_options(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Options in the order typed, each with the words up to the next one.

    Args:
        arguments: without the program's name. ``--a=b`` and ``--a b`` are the same, and ``_`` in an
            option is ``-``.
    """
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            found.append((option.replace("_", "-"), [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
    return found


def idle_options(arguments: Sequence[str], plan: RunPlan) -> Iterator[str]:
    """A line for each option that was typed and changes nothing.

    Args:
        arguments: as typed.
        plan: what came of them.
    """
    options = [option for option, _ in typed_options(arguments)]
    config = plan.config
    for option in sorted({each for each in options if options.count(each) > 1}):
        yield f"{option} was given {options.count(option)} times: the last one counts"
    if "--schedule.epochs" in options and config.schedule.max_steps is not None:
        yield (
            f"--schedule.epochs {config.schedule.epochs:g} does not count: --max-steps "
            f"{config.schedule.max_steps} is the length of the run"
        )
    if isinstance(config.micro_batch, int) and config.micro_batch > plan.local_batch:
        yield (
            f"--micro-batch {config.micro_batch} does not count: a rank's share of the batch is "
            f"{plan.local_batch}"
        )
    if not tower_of(plan.architecture.vision).has_batch_norm:
        for option in ("--model.sync-bn", "--bn-batch", "--model.bn-batch"):
            if option in options:
                yield f"{option} does not count: {config.model.name} has no batch norm"
    if config.data.synthetic is not None:
        evaluation = config.eval
        asked = evaluation.floors or evaluation.tasks or evaluation.names != ("retrieval",)
        if config.data.eval or asked:
            yield "nothing is evaluated: --data.train synthetic teaches nothing"
        for option in _OF_SHARDS:
            if option in options:
                yield f"{option} does not count: --data.train synthetic reads no shards"
    elif not config.data.eval and config.eval.names == ("retrieval",):
        idle = ["--data.eval-limit"]
        if not config.eval.tasks:
            idle += ["--data.eval-batch-size", "--eval.every", "--logging.eval-every-steps"]
        for option in idle:
            if option in options:
                yield f"{option} does not count: there is no --data.eval to measure on"
    if not config.eval.tasks:
        for option in _OF_TASKS:
            if option in options:
                yield f"{option} does not count: there are no --eval.tasks"
    for option in ("--logging.validation-every", "--logging.validation-batch"):
        if option in options and not config.logging.validation:
            yield f"{option} does not count: there is no --logging.validation to measure on"
    is_read = config.data.synthetic is None
    if is_read and not config.data.caption_files:
        for option in _OF_TABLES:
            if option in options:
                yield f"{option} does not count: there are no --data.caption-files"
    if "--data.max-errors" in options and config.data.on_error == "stop" and is_read:
        yield "--data.max-errors does not count: --data.on-error stop bears with none"
    saves = config.checkpoint.every_steps > 0 or config.checkpoint.every_minutes > 0
    if "--checkpoint.keep" in options and not saves:
        yield "--checkpoint.keep does not count: --checkpoint.every-steps 0 saves none"
