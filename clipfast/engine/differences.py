"""What a run that goes on does otherwise than the one that saved its checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clipfast.engine.config import Config, ConfigError
from clipfast.engine.ranges import ALIASES

WITH_CHANGES = "--resume-with-changes"
# What may differ without a word more than that: where it writes, how often, how it is measured,
# how fast it is. Every other option changes what is trained. `data.train`, `data.select` and
# `data.caption_files` may name other places of the same shards, selection and captions: the
# loader's state tells them from others.
FREE = (
    *("logging", "checkpoint", "eval"),
    *(
        "data.train",
        "data.select",
        "data.caption_files",
        "data.caption_cache",
        "data.eval",
        "data.eval_batch_size",
        "data.eval_limit",
        "data.threads",
    ),
    # How bytes come, and not which.
    *("data.store", "data.cache", "data.cache_gb", "data.prefetch"),
    # What a run has left out stays left out, and until a broken sample comes both are the same.
    *("data.on_error", "data.max_errors"),
    *("model.recompute", "model.compile", "keep_graphs", "watchdog_seconds"),
)
# Fields whose values are themselves mappings.
_VALUES = ("floors", "classnames", "templates", "splits", "weights", "repeats")
# No flag makes these fit.
_IMPOSSIBLE = ("model.name",)
# The effect of the first three is in the layout, where "auto" has become a value; the others are
# how a run is resumed.
_SAID_ELSEWHERE = (
    *("zero.stage", "precision", "loss.name"),
    *("checkpoint.resume", "checkpoint.resume_with_changes"),
)


@dataclass(frozen=True)
class Difference:
    """An option that has another value now.

    Attributes:
        name: of the field, dotted.
        saved: its value then.
        now: its value now.
    """

    name: str
    saved: Any
    now: Any

    @property
    def changes_training(self) -> bool:
        """Whether other weights come out."""
        return not any(self.name == free or self.name.startswith(f"{free}.") for free in FREE)

    def __str__(self) -> str:
        return f"{option_of(self.name)} was {_shown(self.saved)}, is {_shown(self.now)}"


def plain(config: Config) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    return json.loads(json.dumps(asdict(config)))


def differences(saved: Mapping[str, Any], config: Config) -> list[Difference]:
    """Options that differ.

    Args:
        saved: ``plain`` of the run before; empty where that is unknown.
        config: of this run.

    Returns:
        One entry per option that both know, in the order of the fields.
    """
    then, now = flat(saved), flat(plain(config))
    return [
        Difference(name, then[name], value)
        for name, value in now.items()
        if name in then and then[name] != value and not _is_said_elsewhere(name, then[name], value)
    ]


def refuse_changes(found: list[Difference], *, allowed: bool) -> None:
    """Raise where the run would be another one.

    Args:
        found: as ``differences`` gave it.
        allowed: ``--resume-with-changes`` was passed.

    Raises:
        ConfigError: an option changes what is trained, and that was not asked for; or nothing makes
            it fit.
    """
    impossible = [entry for entry in found if entry.name in _IMPOSSIBLE]
    if impossible:
        raise ConfigError(
            f"--resume: {impossible[0]}. A checkpoint fits its own model alone: start a new run "
            "(--logging.name), with --model.weights for weights that fit"
        )
    meant = [entry for entry in found if entry.changes_training]
    if meant and not allowed:
        raise ConfigError(
            f"--resume: this would no longer be the run that was saved: "
            f"{'; '.join(map(str, meant))}. Pass what it was started with, or "
            f"{WITH_CHANGES} where that is meant"
            + (
                ". --model.weights is for new runs: a resumed one has its checkpoint's"
                if any(entry.name == "model.weights" for entry in meant)
                else ""
            )
        )


def _is_said_elsewhere(name: str, then: Any, now: Any) -> bool:
    # Both keep fp32, and multiply otherwise: no layout tells tf32 from it.
    return name in _SAID_ELSEWHERE and not (name == "precision" and "tf32" in (then, now))


def option_of(name: str) -> str:
    """How a field is spelled on the command line."""
    long = "--" + name.replace("_", "-")
    return ALIASES.get(long, long)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a configuration by their dotted names.

    Args:
        config: as ``plain`` gives it.
    """
    fields: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in _VALUES:
            fields.update({f"{key}.{name}": inner for name, inner in flat(value).items()})
        else:
            fields[key] = value
    return fields


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    return "not given" if value is None else str(value)
