"""A checkpoint of some ranks and stage of ZeRO goes on at others, bit for bit."""

from pathlib import Path

import pytest

from tests.engine.elastic_cases import (
    FORMATS,
    STAGES,
    assembled,
    build,
    differing,
    discard,
    farthest,
    load,
    save,
    train,
)
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks

# fp16 statistics, whose blocks could be divided; a master, a remainder and neither beside weights.
SHORT = [FORMATS[2], FORMATS[12]]
SAVED = [(2, 1), (2, 3), (1, 0), (3, 2)]
NUMBERS, LATER = range(2), range(2, 4)


def _save(port: int, root: str, stages: list[int]) -> None:
    process = start_rank(port)
    for number, kind in enumerate(SHORT):
        for stage in stages:
            engine = build(kind, stage, process)
            train(engine, NUMBERS)
            folder = Path(root, f"{number}-{process.world_size}-{stage}")
            save(engine, process, folder)
            train(engine, LATER)
            save(engine, process, folder.with_name(f"{folder.name}-later"))
            discard(engine)


def _go_on(port: int, root: str) -> None:
    process = start_rank(port)
    for number, kind in enumerate(SHORT):
        for stage in STAGES:
            engine = build(kind, stage, process)
            for ranks, saved_stage in SAVED:
                folder = Path(root, f"{number}-{ranks}-{saved_stage}")
                load(engine, process, folder)
                name = f"{folder.name}-on-{process.world_size}-{stage}"
                save(engine, process, folder.with_name(name))
                train(engine, LATER)
                save(engine, process, folder.with_name(f"{name}-later"))
            discard(engine)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("elastic")
    for ranks in (1, 2, 3):
        stages = [stage for saved, stage in SAVED if saved == ranks]
        run_ranks(ranks, _save, free_port(), str(root), stages)
    for ranks in (1, 2):
        run_ranks(ranks, _go_on, free_port(), str(root))
    return root


@pytest.mark.parametrize("number", range(len(SHORT)), ids=[str(kind) for kind in SHORT])
def test_a_checkpoint_loads_on_other_ranks_and_stages_and_goes_on_bit_for_bit(folders, number):
    for ranks, stage in SAVED:
        folder = folders / f"{number}-{ranks}-{stage}"
        whole = assembled(folder)
        later = assembled(folder.with_name(f"{folder.name}-later"))
        for other in (1, 2):
            for other_stage in STAGES:
                name = f"{folder.name}-on-{other}-{other_stage}"
                found = assembled(folder.with_name(name))
                assert differing(found, whole) == [], name
                went_on = assembled(folder.with_name(f"{name}-later"))
                if ranks == 3:
                    # A mean of three equal gradients is not always their value.
                    assert farthest(went_on, later) < 1e-2, name
                else:
                    assert differing(went_on, later) == [], name
