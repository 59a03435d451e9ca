"""Retrieval on several captions an image, against sorting, and its command line."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfast.eval.__main__ import main
from clipfast.eval.captioned import retrieve
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.sets import CaptionedSet
from clipfast.preprocessing import Preprocessing
from tests.eval.tiny import SIZE, picture, tiny_model, tiny_weights
from tests.ranks import run_ranks

pytestmark = pytest.mark.needs("nvidia.dali")
COUNTS = (1, 3, 2, 1, 4, 2, 1, 3, 2, 1, 1, 2, 1)


def captioned(broken=()):
    image_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    captions = [f"picture {image} said {i % 5}" for i, image in enumerate(image_of)]
    return CaptionedSet(
        "toys",
        "test",
        lambda i: b"broken" if i in broken else picture(i),
        captions,
        image_of,
    )


def encoder(rank=0, world_size=1):
    return ImageEncoder(
        tiny_model(), Preprocessing(SIZE), batch_size=4, rank=rank, world_size=world_size
    )


def by_sorting(similarity, is_right, k):
    """Share of rows with a right column among the first K."""
    first = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    return is_right.gather(1, first).any(1).double().mean().item()


@pytest.mark.parametrize("broken", [(), (1, 7)])
def test_retrieve_counts_what_sorting_finds(broken):
    made, ours = captioned(broken), encoder()
    found = retrieve(ours, made, prefix="a drawing of ")
    keep = [i for i in range(len(made)) if i not in broken]
    kept = [t for t, image in enumerate(made.image_of) if image in keep]
    assert (found.images, found.captions) == (len(keep), len(kept))
    assert sorted(found.unreadable) == list(broken)
    images = F.normalize(ours.images(made)[keep].double(), dim=1)
    right = torch.from_numpy(made.image_of[kept])[:, None] == torch.tensor(keep)
    for prefix, recalls in (("", found.main), ("a drawing of ", found.prefixed)):
        texts = ours.texts([prefix + made.captions[t] for t in kept])
        similarity = F.normalize(texts.double(), dim=1) @ images.T
        for k in (1, 5, 10):
            want = {
                f"image_retrieval_recall@{k}": by_sorting(similarity, right, k),
                f"text_retrieval_recall@{k}": by_sorting(similarity.T, right.T, k),
            }
            for name, value in want.items():
                assert recalls.metrics[name] == pytest.approx(value, abs=1e-12), name
                low, high = recalls.intervals[name]
                assert low <= value <= high
    assert found.main.metrics != found.prefixed.metrics
    assert found.chance["image_retrieval_recall@1"] == pytest.approx(1 / len(keep))


def test_retrieve_refuses_a_set_of_which_no_image_decodes():
    with pytest.raises(ValueError, match="toys: no image decodes: "):
        retrieve(encoder(), captioned(range(len(COUNTS))))


def _shared() -> list[float]:
    found = retrieve(encoder(torch.distributed.get_rank(), 2), captioned((3,)))
    return [*found.main.metrics.values(), *found.prefixed.metrics.values()]


def test_two_ranks_find_what_one_finds():
    found = retrieve(encoder(), captioned((3,)))
    want = [*found.main.metrics.values(), *found.prefixed.metrics.values()]
    assert run_ranks(2, _shared) == [pytest.approx(want, abs=1e-12)] * 2


def test_the_command_line_writes_what_scripts_of_clip_benchmark_read(tmp_path, capsys):
    made = captioned()
    with (tmp_path / "toys.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for image, caption in zip(made.image_of, made.captions, strict=True):
            (tmp_path / f"{image}.png").write_bytes(made.encoded(image))
            writer.writerow([f"{image}.png", caption])
    weights = str(tiny_weights(tmp_path))
    given = ["retrieval", "--weights", weights, "--data", str(tmp_path / "toys.csv")]
    assert main([*given, "--out", str(tmp_path / "results")]) == 0
    path = tmp_path / "results" / "toys_ViT-tiny_zeroshot_retrieval_en.json"
    written = json.loads(path.read_text())
    found = retrieve(encoder(), made)
    assert written["metrics"] == pytest.approx(dict(found.main.metrics))
    assert written["task"] == "zeroshot_retrieval"
    assert written["resize"] == "exact"
    assert written["with_prefix"]["prefix"] == "a photo of "
    said = capsys.readouterr().out
    assert "toys (test, 13 images, 24 captions)" in said
    assert f"{written['metrics']['text_retrieval_recall@5']:.2%}" in said
    assert main([*given, "--out", str(tmp_path / "results"), "--skip-existing"]) == 0
    assert "is there already" in capsys.readouterr().out
