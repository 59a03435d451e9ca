"""A folder that img2dataset itself has written trains unchanged."""

import csv
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from clipfast.data import ShardReader
from clipfast.data.shards import counts, expand
from tests.engine.launching import rows, train_in_turn
from tests.storage.httpfolder import serve

COUNT, MISSING = 26, (3, 10, 17, 24)


def pictures(folder: Path) -> dict[str, str]:
    """Drawings of the sample as files, with their captions."""
    reader = ShardReader(expand("sample/noto"))
    found = {}
    for row in range(COUNT):
        (folder / f"{row}.png").write_bytes(reader.image(0, row))
        found[f"{row}.png"] = reader.caption(0, row)
    reader.close()
    return found


@pytest.mark.slow
@pytest.mark.needs("img2dataset")
def test_what_img2dataset_writes_trains_as_it_is(tmp_path):
    web, out = tmp_path / "web", tmp_path / "out"
    web.mkdir()
    captions = pictures(web)
    for row in MISSING:
        (web / f"{row}.png").unlink()
    server = serve(web)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with open(tmp_path / "urls.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows((f"{address}/{name}", text) for name, text in captions.items())
    command = [
        *("img2dataset", "--url_list", str(tmp_path / "urls.csv"), "--input_format", "csv"),
        *("--url_col", "url", "--caption_col", "caption", "--output_format", "webdataset"),
        *("--output_folder", str(out), "--processes_count", "1", "--thread_count", "4"),
        *("--image_size", "64", "--number_sample_per_shard", "15"),
    ]
    quiet = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(command, check=True, env=quiet, stdout=subprocess.DEVNULL)
    server.shutdown()
    server.server_close()
    told = [json.loads(path.read_text()) for path in sorted(out.glob("*_stats.json"))]
    assert [each["count"] for each in told] == [15, 11]
    assert sum(each["failed_to_download"] for each in told) == len(MISSING)
    with tarfile.open(out / "00000.tar") as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {"jpg", "txt", "json"}

    options = ("--data.train", f"{out}/", "--batch-size", "11", "--max-steps", "2")
    train_in_turn(tmp_path, {"run": options})
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    shards = expand(f"{out}/")
    reader = ShardReader(shards)
    found = [reader.caption(s, r) for s, n in enumerate(counts(shards)) for r in range(n)]
    reader.close()
    kept = [text for row, text in enumerate(captions.values()) if row not in MISSING]
    assert sorted(found) == sorted(kept)
