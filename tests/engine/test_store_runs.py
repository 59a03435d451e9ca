"""Whole runs that live in a store: shards come from it, checkpoints go to it, a machine is lost."""

from __future__ import annotations

import signal
import tarfile
from pathlib import Path

import pytest
import safetensors.torch

from clipfast import data
from clipfast.data.pack import main as pack
from clipfast.storage import storage_of
from tests.campaigns.resumer import Resumer
from tests.campaigns.subject import Subject, send, wait_until
from tests.campaigns.traces import difference, last_step, losses
from tests.storage.conftest import SECRETS, folder, moto  # noqa: F401 - fixtures
from tests.storage.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stores")]

SHARDS, RUNS, STEPS = "s3://shards/emoji", "s3://shards/runs", 60
TRAINED = (
    *("--max-steps", str(STEPS), "--data.shuffle-window", "64", "--logging.every-steps", "1"),
    # Statistics of batch norms are those of 16 pairs on any number of ranks.
    *("--checkpoint.every-steps", "4", "--zero-stage", "1", "--bn-batch", "16"),
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pictures of the sample, packed."""
    sample = Path(data.__file__).parent / "sample" / "noto-emoji.tar"
    with tarfile.open(sample) as tar:
        members = [member for _, member in zip(range(320), tar, strict=False)]
        tar.extractall(tmp_path / "pictures", members, filter="data")
    options = ["--shard-size", "60", "--workers", "1", "--no-dali"]
    assert pack([str(tmp_path / "pictures"), "--output", str(tmp_path / "shards"), *options]) == 0
    return tmp_path / "shards"


@pytest.fixture
def in_bucket(moto: Proxy, shards: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """The same shards in a bucket, which processes that are started reach too."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto.port}")
    for path in shards.iterdir():
        storage_of(SHARDS).write_atomic(f"{SHARDS}/{path.name}", path.read_bytes())
    return f"{SHARDS}/*.tar"


def whole_ones() -> list[str]:
    """Names of the checkpoints that are whole in the store."""
    above = f"{RUNS}/run/checkpoints"
    names = sorted(each.name for each in storage_of(above).list(above))
    return [n for n in names if storage_of(above).is_file(f"{above}/{n}/manifest.json")]


def test_a_run_through_a_store_whose_machine_is_lost_repeats_the_one_from_files(
    in_bucket, shards, tmp_path
):
    # A rank of two is killed while it trains, by the launcher that users have.
    through = [
        *("--data.train", in_bucket, "--data.cache", str(tmp_path / "cache")),
        *("--data.cache-gb", "1", "--checkpoint.upload", RUNS),
    ]
    lost = Subject().start(tmp_path / "lost", *TRAINED, *through, launcher="deepspeed")
    try:
        here = tmp_path / "lost/run/checkpoints"
        assert wait_until(lambda: bool(list(here.glob("step*"))), 240), lost.output()
        # The server computes on the same cores: it is not asked more often than need be.
        assert wait_until(lambda: bool(whole_ones()), 120, 0.3), lost.output()
        send(lost.ranks()[-1], signal.SIGKILL)
        assert lost.gone(90), lost.output()
    finally:
        lost.kill()
    assert list((tmp_path / "cache").iterdir())
    assert 0 < last_step(tmp_path / "lost/run") < STEPS
    first = int(whole_ones()[-1].removeprefix("step"))
    assert 4 <= first < STEPS

    # One rank of another machine branches off, before the run itself goes on.
    alone = Subject().start(
        *(tmp_path / "alone", *TRAINED, "--data.train", in_bucket),
        *("--resume", f"{RUNS}/run/checkpoints/step{first:08d}"),
    )
    with Resumer(Subject(), 2, 240) as machine:
        files = ["--data.train", str(shards / "*.tar"), "--logging.dir", str(tmp_path / "files")]
        assert machine.resume([*TRAINED, *files], train=True).status == 0
        fresh = ["--logging.dir", str(tmp_path / "fresh"), "--resume", "latest"]
        resumed = machine.resume([*TRAINED, *through, *fresh], train=True)
    assert (resumed.status, resumed.step) == (0, first), resumed.said
    assert f"Fetched {RUNS}/run/checkpoints/step{first:08d}" in resumed.said

    # Weights and rows are those of the run from files, with the rows of the machine that is lost.
    assert difference(tmp_path / "fresh/run", tmp_path / "files/run") == ""
    assert len(losses(tmp_path / "fresh/run")) == STEPS
    assert whole_ones() == [f"step{STEPS - 4:08d}", f"step{STEPS:08d}"]
    for name in ("final.safetensors", "metrics.jsonl", "run.json"):
        there = storage_of(RUNS).read(f"{RUNS}/run/{name}")
        assert there == (tmp_path / "fresh/run" / name).read_bytes()

    # Another number of ranks sums otherwise, and nothing more than that.
    ended = alone.wait(240)
    assert ended.status == 0, ended.output
    theirs = [loss for step, loss in losses(tmp_path / "files/run") if step > first]
    ours = [loss for _, loss in losses(tmp_path / "alone/run")]
    assert ours[:4] == pytest.approx(theirs[:4], rel=1e-4)
    assert ours == pytest.approx(theirs, rel=5e-2)
    weights = [
        safetensors.torch.load_file(tmp_path / name / "run/final.safetensors")["logit_scale"]
        for name in ("alone", "files")
    ]
    assert weights[0].item() == pytest.approx(weights[1].item(), rel=1e-3)
