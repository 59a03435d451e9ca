"""Reading the configuration of a recipe without running it.

A recipe is a program whose last line is ``main(config)``. While it is read, ``main`` hands over
what it was given and goes no further.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from clipfast.engine.config import Config, ConfigError
from clipfast.engine.environment import claims_to_be_main

PLAN = "--plan"

_reading = False


class _HandedOver(BaseException):
    """Carries a recipe's configuration out of its ``main``; nothing between may catch it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def read_recipe(path: str | Path) -> Config:
    """The configuration that a recipe would run with, before the command line changes it.

    What else the recipe does is done: objectives, towers and evaluations that it registers are
    known from then on.

    Args:
        path: of the Python file.

    Raises:
        ConfigError: there is no such file, or it does not come to ``main``.
    """
    global _reading
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such recipe. Name its file, such as recipes/rn50.py")
    _reading = True
    try:
        runpy.run_path(str(path), run_name="__main__")
    except _HandedOver as handed:
        return handed.config
    finally:
        _reading = False
    raise ConfigError(f"{path} is no recipe: it never calls clipfast.engine.main(config)")


def hand_over(config: Config) -> None:
    """Called by ``main`` first: ends the recipe here where it is only read.

    Args:
        config: the recipe's.
    """
    if _reading:
        raise _HandedOver(config)


def plan_instead(arguments: Sequence[str]) -> None:
    """Where ``--plan`` was typed, become ``python -m clipfast.plan`` of this recipe. Of several
    ranks the first one does; the others end.

    Args:
        arguments: of the recipe's command line.
    """
    if PLAN not in arguments:
        return
    if not claims_to_be_main():
        raise SystemExit(0)
    rest = [argument for argument in arguments if argument != PLAN]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "clipfast.plan", sys.argv[0], *rest])
