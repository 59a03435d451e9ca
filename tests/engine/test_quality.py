"""A short run that must learn: it retrieves the pairs that it was trained on."""

import io
import tarfile
from pathlib import Path

import pytest

from clipfast.data import ShardReader
from clipfast.data.shards import expand
from tests import commands
from tests.engine.launching import QUICK, command, environment

PAIRS, STEPS, FLOOR = 32, 60, 0.8


def write_shard(path: Path) -> None:
    """Some emoji drawings, far apart in the sample, as a shard of their own."""
    reader = ShardReader(expand("sample/noto"))
    with tarfile.open(path, "w") as tar:
        for number in range(PAIRS):
            row = number * 59
            caption = reader.caption(0, row).encode()
            for extension, data in (("png", reader.image(0, row)), ("txt", caption)):
                member = tarfile.TarInfo(f"{number:02}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.slow
def test_a_short_run_learns_its_pairs_and_a_floor_above_it_ends_with_status_1(tmp_path):
    shard = tmp_path / "few.tar"
    write_shard(shard)
    recall = "eval/few/image_to_text/R@"
    options = [
        *(*QUICK, "--logging.dir", str(tmp_path), "--logging.no-progress"),
        *("--data.train", str(shard), "--data.eval", str(shard)),
        *("--batch-size", str(PAIRS), "--max-steps", str(STEPS), "--schedule.warmup-steps", "5"),
        # Chance is 1 of 32 for the first place; nothing exceeds 1.
        *("--eval.floors", f"{recall}1", str(FLOOR), f"{recall}10", "1.01"),
    ]
    done = commands.run(command("emoji.py", *options), env=environment())
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert f"{recall}10 is 1.000, below its floor of 1.01" in output
    assert f"{recall}1 is" not in output, output
