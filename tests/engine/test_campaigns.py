"""The campaigns in short: the programs of tests/campaigns with a few attacks each.

Those that start many processes for an attack are run by hand alone: disk, hosts, twins, elastic,
stores, soak.
"""

import random

import pytest

from tests.campaigns import (
    calls,
    data,
    fuzz,
    hostile,
    images,
    kill,
    ranks,
    soak,
    torn,
    weights,
)
from tests.campaigns.program import Setting
from tests.campaigns.soak import Sample
from tests.campaigns.subject import Subject
from tests.campaigns.table import Row, Table, markdown

SHORT = {
    "calls": (calls.campaign, 170),
    # Each kind once.
    "data": (data.campaign, 13),
    "kill": (kill.short, 2),
    "torn": (torn.short, 5),
    "hostile": (hostile.campaign, 22),
    "fuzz": (fuzz.campaign, 150),
    "images": (images.campaign, 150),
    "weights": (weights.campaign, 25),
}


THOROUGH = {
    # A rank is killed, and torchrun starts the ranks again. tests/engine/test_slurm.py has ranks
    # that start again and go on, tests/engine/test_failure.py one that is killed.
    "ranks": (ranks.campaign, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SHORT, *(pytest.param(name, marks=pytest.mark.thorough) for name in THOROUGH)]
)
def test_a_short_campaign_loses_nothing(tmp_path, name):
    campaign, count = (SHORT | THOROUGH)[name]
    table = campaign(Setting(Subject(), tmp_path, count, random.Random(0)))
    assert [(row.attack, row.outcome) for row in table.lost] == []
    assert len(table.rows) == count


def test_soak_tells_a_leak_from_a_run_that_warms_up_and_then_breathes():
    flat = [Sample(500.0 + (n % 3), 8, 20) for n in range(200)]
    warm = [Sample(300.0, 4, 10)] * 15 + flat
    assert soak.judge(warm)[0]
    leaks = {
        "memory": [Sample(500.0 + n / 4, 8, 20) for n in range(200)],
        "threads": [Sample(500.0, 8 + n // 20, 20) for n in range(200)],
        "files": [Sample(500.0, 8, 20 + n // 20) for n in range(200)],
    }
    for samples in leaks.values():
        assert not soak.judge(samples)[0]
    assert not soak.judge(flat[:5])[0]


def test_a_table_counts_what_was_tried_and_shows_the_first_loss(capsys):
    table = Table("torn")
    table.add("a bit", "first", True, "noticed")
    table.add("a bit", "second", False, "went on | silently")
    assert table.lost == [Row("torn", "a bit", "second", False, "went on | silently")]
    assert "LOST torn, a bit, second" in capsys.readouterr().out
    assert "| torn | a bit | 2 | 1 | second: went on / silently |" in markdown(table.rows)
