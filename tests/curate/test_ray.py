"""--engine ray: the same bytes as one process, and errors that are those of the task."""

from pathlib import Path

import pytest

from clipfast.curate import main
from clipfast.curate.engine.cluster import open_ray
from tests.curate.shards import captioned

pytestmark = pytest.mark.needs("pyarrow", "ray", "ftfy")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_match_and_balance_on_two_workers_of_ray_equal_one_process(tmp_path, capsys, monkeypatch):
    # Workers import the repository's code and the tests' packages.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    for place in range(3):
        captioned(tmp_path / f"{place}.tar", ["a dog", "a cat", f"a dog and {place} cats"] * 9)
    (tmp_path / "q.txt").write_text("dog\ncat\na dog and\n2")
    shards = [str(tmp_path / f"{place}.tar") for place in range(3)]
    executor, count = open_ray(None, 2)
    assert count == 2
    try:
        for folder, engine in (("alone", "pool"), ("ray", "ray")):
            options = ["--engine", engine, "--workers", "1" if engine == "pool" else "2"]
            out = str(tmp_path / folder)
            queries = str(tmp_path / "q.txt")
            assert main(["match", *shards, "--queries", queries, "--out", out, *options]) == 0
            selection = str(tmp_path / folder / "s.parquet")
            assert main(["balance", out, "--at-most", "5", "--out", selection, *options]) == 0
        assert files(tmp_path / "alone") == files(tmp_path / "ray")
        assert len(files(tmp_path / "ray")) == 3 + 1 + 3 + 1
        # A shard that is damaged is named, as a process of its own would.
        Path(shards[0]).write_bytes(b"")
        main(["balance", out, "--at-most", "6", "--out", selection, *options])
        assert "0.tar" in capsys.readouterr().err
    finally:
        executor.shutdown()
