"""The doctor's options: a recipe's, and a few of its own."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from clipfast.engine.cli import parse
from clipfast.engine.config import Config, ConfigError, DataConfig, ModelOptions
from clipfast.engine.environment import processes_claimed
from clipfast.engine.ranges import Range, check_fields

_PAIRS_PER_RANK = 16


@dataclass(frozen=True)
class DoctorConfig(Config):
    """Look at this machine, launcher and flags, as a run would use them.

    The options are a recipe's. What they leave open is small: a tiny model, 16 pairs a rank.
    """

    json: str = ""
    """Write what was found and seen to this file too."""

    only: tuple[str, ...] = ()
    """Names of checks; empty: all of them."""

    patience: float = 60.0
    """Seconds to wait for ranks that are not there yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "", patience=Range(1, 3600))


def default_config() -> DoctorConfig:
    """What is looked at where nothing is asked for."""
    return DoctorConfig(
        # Compiled blocks take a minute to begin with.
        model=ModelOptions("ViT-tiny", compile="none"),
        data=DataConfig(train=("sample/noto",)),
        batch_size=_PAIRS_PER_RANK * max(1, processes_claimed()),
    )


def read_options(arguments: Sequence[str] | None) -> tuple[DoctorConfig, str]:
    """What was typed.

    Args:
        arguments: without the program's name; None takes ``sys.argv``.

    Returns:
        The configuration, and what is wrong with it: then it is the default one.

    Raises:
        SystemExit: help was asked for and given.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse(default_config(), arguments), ""
    except ConfigError as error:
        return default_config(), str(error)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro's words stand in a box.
        words = printed.getvalue().translate({ord(c): " " for c in "│─╭╮╰╯"})
        return default_config(), " ".join(words.split())
