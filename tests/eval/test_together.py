"""What one rank of a command fails at ends all of them, by name."""

import contextlib
import importlib
import io
import os

import pytest
import torch.distributed as dist

from clipfast.eval import embedding
from clipfast.eval.__main__ import main
from clipfast.eval.commands import COMMANDS
from clipfast.eval.sharing import OtherRankFailed, Sharing
from tests.eval.test_embedding import write_shards
from tests.eval.tiny import tiny_weights, write_pictures
from tests.ranks import run_ranks

pytestmark = pytest.mark.needs("nvidia.dali")


def _commands(place):
    """By case, the command of each of two ranks."""
    weights = ["--weights", f"{place}/w.safetensors"]
    zeroshot = ["zeroshot", *weights, "--out", f"{place}/res", "--data"]
    good, bad = [*zeroshot, f"{place}/animals"], [*zeroshot, f"{place}/nothing"]
    embed = ["embed", f"{place}/shards/*.tar", *weights, "--out"]
    return {
        "missing on rank 1": (good, bad),
        "missing on rank 0": (bad, good),
        "rank 0 cannot write": ([*good[:4], f"{place}/w.safetensors", *good[5:]], good),
        "all is well": (good, good),
        "a shard of rank 1": ([*embed, f"{place}/out"],) * 2,
        "a folder of other features": ([*embed, f"{place}/other"],) * 2,
    }


def _run(place):
    rank = dist.get_rank()
    os.environ.update({"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)})
    whole = embedding._part

    def part(encoder, reader, number, folder):
        if number == 1:
            raise ValueError("shard 1 is torn")
        return whole(encoder, reader, number, folder)

    embedding._part = part
    found = {}
    for case, commands in _commands(place).items():
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main(commands[rank])
        found[case] = [status, said.getvalue()]
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    tiny_weights(place).rename(place / "w.safetensors")
    write_pictures(place / "animals", {"cat": 3, "dog": 2})
    write_shards(place / "shards")
    (place / "other").mkdir()
    (place / "other" / "embed.json").write_text('{"model": "another"}')
    return run_ranks(2, _run, place)


@pytest.mark.parametrize(
    ("case", "failing", "why"),
    [
        ("missing on rank 1", 1, "nothing' does not exist"),
        ("missing on rank 0", 0, "nothing' does not exist"),
        ("rank 0 cannot write", 0, "w.safetensors"),
        ("a shard of rank 1", 1, "shard 1 is torn"),
        ("a folder of other features", 0, "holds features of another run"),
    ],
)
def test_all_ranks_end_with_the_error_of_the_one_that_failed(both, case, failing, why):
    own, other = both[failing][case], both[1 - failing][case]
    assert own[0] == other[0] == 1
    assert why in own[1]
    assert "failed" not in own[1]
    assert f"error: rank {failing} on " in other[1]
    assert why in other[1]


def test_ranks_go_on_after_one_has_failed(both):
    assert [rank["all is well"][0] for rank in both] == [0, 0]


def test_a_rank_alone_tells_nobody():
    assert issubclass(OtherRankFailed, ValueError)
    assert Sharing().gather_objects(3) == [3]
    Sharing().wait()


def test_every_command_that_ranks_share_says_so():
    shared = set()
    for name in COMMANDS:
        command = importlib.import_module(f"clipfast.eval.commands.{name}")
        if hasattr(command, "encoder_of"):
            assert command.SHARES_WORK, name
            shared.add(name)
    assert {"zeroshot", "embed", "probe"} <= shared
