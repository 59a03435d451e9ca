"""Options that were typed and change nothing are named."""

import pytest
import torch

from clipfast.engine import Config
from clipfast.engine.cli import parse
from clipfast.engine.launch import Process
from clipfast.engine.plan import decide
from clipfast.engine.typed import idle_options, typed_options

ONE = Process(0, 0, 1, 1, torch.device("cpu"))


def test_typed_options_are_split_as_the_command_line_is():
    assert typed_options(["--a=1", "--b_c", "2", "3", "--d"]) == [
        ("--a", ["1"]),
        ("--b-c", ["2", "3"]),
        ("--d", []),
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--max-steps 5 --data.eval a.tar --data.eval-limit 3", []),
        ("--schedule.epochs 3", []),
        (
            "--schedule.epochs 3 --max-steps 5",
            ["--schedule.epochs 3 does not count: --max-steps 5"],
        ),
        ("--micro-batch 64 --batch-size 64", []),
        ("--micro-batch 65 --batch-size 64", ["--micro-batch 65 does not count"]),
        ("--batch-size 8 --batch-size 64", ["--batch-size was given 2 times"]),
        ("--data.eval-limit 3", ["--data.eval-limit does not count"]),
        ("--logging.eval-every-steps 3", ["--logging.eval-every-steps does not count"]),
        ("--checkpoint.keep 3 --checkpoint.every-steps 0", ["--checkpoint.keep does not count"]),
        ("--checkpoint.keep 3", []),
        ("--data.max-errors 3", ["--data.max-errors does not count"]),
        ("--data.max-errors 3 --data.on-error skip", []),
    ],
)
def test_idle_options_are_named_and_others_are_not(words, expected):
    arguments = [*words.split(), "--model.name", "RN-tiny"]
    lines = list(idle_options(arguments, decide(parse(Config(), arguments), ONE)))
    assert [line.startswith(start) for line, start in zip(lines, expected, strict=True)] == [
        True
    ] * len(expected)
