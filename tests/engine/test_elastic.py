"""A checkpoint of some ranks and stage of ZeRO goes on at others, bit for bit.

So does DeepSpeed's own, which earlier versions wrote. `python -m tests.campaigns.elastic` tries all
of them."""

from pathlib import Path

import pytest
import torch

from clipfast.engine.deepspeed.masters import exact_parameters
from tests.engine.elastic_cases import (
    FORMATS,
    STAGES,
    assembled,
    build,
    build_as_before,
    differing,
    discard,
    load,
    load_as_before,
    save,
    statistics_as_before,
    train,
)
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks

# fp16 statistics, whose blocks could be divided; a master, a remainder and neither beside weights.
SHORT = [FORMATS[2], FORMATS[12]]
SAVED = (1, 3)
NUMBERS, LATER = range(2), range(2, 4)


def _two_ranks(port: int, root: str) -> None:
    process = start_rank(port)
    # Before DeepSpeed keeps to the grid of today, which is for good at stage 3.
    for number, kind in enumerate(SHORT):
        for stage in SAVED:
            folder = Path(root, f"before-{number}-{stage}")
            engine = build_as_before(kind, stage, process)
            train(engine, NUMBERS)
            engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
            if process.is_main:
                torch.save(dict(_weights(engine)), folder / "weights.pt")
            else:
                dict(_weights(engine))
            discard(engine)
    for number, kind in enumerate(SHORT):
        for stage in SAVED:
            engine = build(kind, stage, process)
            train(engine, NUMBERS)
            folder = Path(root, f"{number}-{stage}")
            save(engine, process, folder)
            weights = dict(_weights(engine))
            if process.is_main:
                torch.save(weights, folder / "weights.pt")
            train(engine, LATER)
            save(engine, process, folder.with_name(f"{folder.name}-later"))
            discard(engine)


def _weights(engine):
    """By DeepSpeed's own ways of putting parameters together."""
    return ((name, weight.detach().clone()) for name, weight in exact_parameters(engine))


def _one_rank(port: int, root: str) -> None:
    process = start_rank(port)
    for number, kind in enumerate(SHORT):
        for stage in STAGES:
            engine = build(kind, stage, process)
            for saved in SAVED:
                folder = Path(root, f"{number}-{saved}")
                load(engine, process, folder)
                save(engine, process, folder.with_name(f"{folder.name}-on-{stage}"))
                train(engine, LATER)
                save(engine, process, folder.with_name(f"{folder.name}-on-{stage}-later"))
                before = Path(root, f"before-{number}-{saved}")
                assert load_as_before(engine, before) == []
                save(engine, process, before.with_name(f"{before.name}-on-{stage}"))
            discard(engine)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("elastic")
    run_ranks(2, _two_ranks, free_port(), str(root))
    run_ranks(1, _one_rank, free_port(), str(root))
    return root


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("number", range(len(SHORT)), ids=[str(kind) for kind in SHORT])
def test_a_checkpoint_of_two_ranks_goes_on_on_one_at_every_stage_bit_for_bit(root, number, saved):
    folder = root / f"{number}-{saved}"
    whole, later = assembled(folder), assembled(root / f"{number}-{saved}-later")
    for name, weight in torch.load(folder / "weights.pt").items():
        assert torch.equal(whole[f"{name}: exact weight"], weight.view(-1)), name
    for stage in STAGES:
        assert differing(assembled(root / f"{number}-{saved}-on-{stage}"), whole) == [], stage
        on = assembled(root / f"{number}-{saved}-on-{stage}-later")
        assert differing(on, later) == [], stage


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("number", range(len(SHORT)), ids=[str(kind) for kind in SHORT])
def test_a_checkpoint_of_deepspeed_loads_on_other_ranks_at_every_stage(root, number, saved):
    folder = root / f"before-{number}-{saved}"
    weights = torch.load(folder / "weights.pt")
    first = statistics_as_before(folder, 2)
    for stage in STAGES:
        found = assembled(root / f"before-{number}-{saved}-on-{stage}")
        for name, weight in weights.items():
            assert torch.equal(found[f"{name}: exact weight"], weight.view(-1)), (name, stage)
        values = torch.cat([found[key] for key in sorted(found) if "value of exp_avg" in key])
        # What pads the ranks' parts is zero.
        assert torch.equal(_without_zeros(values), _without_zeros(first)), stage


def _without_zeros(values: torch.Tensor) -> torch.Tensor:
    return values[values != 0].sort().values
