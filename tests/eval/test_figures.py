"""The pictures: every query and the frame of the right answer are really drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipfast.eval.curves import curves_figure
from clipfast.eval.gallery import Gallery, retrieval_figure

GREEN = (26, 150, 65)


def gallery(features: torch.Tensor, answers: torch.Tensor) -> Gallery:
    colors = np.random.default_rng(0).integers(0, 80, (len(features), 3))

    def image(i: int) -> Image.Image:
        return Image.new("RGB", (16, 16), tuple(int(c) for c in colors[i]))

    return Gallery("a title", answers, features, image, lambda i: f"caption {i}")


def green_pixels(path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - GREEN).sum(-1) < 12).sum())


def test_retrieval_figure_frames_the_right_answers_alone(tmp_path):
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(20, 32))
    right, wrong = tmp_path / "right.png", tmp_path / "wrong.png"
    retrieval_figure([gallery(features, features)] * 2, right)
    retrieval_figure([gallery(features, -features)], wrong)
    assert green_pixels(right) > 1000
    assert green_pixels(wrong) == 0
    assert Image.open(right).width > 1.5 * Image.open(wrong).width


def test_retrieval_figure_draws_fewer_rows_for_few_pairs(tmp_path):
    features = torch.eye(3)
    retrieval_figure([gallery(features, features)], tmp_path / "few.png")
    assert green_pixels(tmp_path / "few.png") > 100


@pytest.mark.parametrize("with_norm", [True, False])
def test_curves_figure_plots_training_and_evaluation_rows(tmp_path, with_norm):
    rows = [
        {"step": s, "loss": 1 / s, "logit_scale": 14.3, "lr": 1e-3, "images_per_second": 9.0}
        | ({"grad_norm": 2.0} if with_norm else {})
        for s in range(1, 9)
    ]
    rows.append({"step": 8, "eval/sample/noto/image_to_text/R@1": 0.5})
    curves_figure(rows, tmp_path / "curves.png")
    assert pixels_near((31, 119, 180), tmp_path / "curves.png") > 500


def test_curves_figure_plots_the_loss_of_held_out_pairs(tmp_path):
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
    orange = (255, 127, 14)
    curves_figure(rows, tmp_path / "without.png")
    curves_figure(
        [*rows, {"step": 2, "validation/loss": 0.5}, {"step": 8, "validation/loss": 0.2}],
        tmp_path / "with.png",
    )
    assert pixels_near(orange, tmp_path / "without.png") == 0
    assert pixels_near(orange, tmp_path / "with.png") > 50


def pixels_near(color, path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return (np.abs(pixels.astype(int) - color).sum(-1) < 12).sum()


def test_curves_figure_plots_top_1_of_tasks_where_there_is_no_retrieval(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *a, **k: drawn.append((k.get("label"), a)) or plot(self, *a, **k)
    )
    rows = [{"step": step, "eval/pets/zeroshot/acc1": step / 10} for step in (2, 4)]
    curves_figure(rows, tmp_path / "curves.png")
    assert drawn == [("pets/zeroshot", ((2, 4), (0.2, 0.4)))]
    drawn.clear()
    rows.append({"step": 4, "eval/coco/image_to_text/R@1": 0.5})
    curves_figure(rows, tmp_path / "curves.png")
    assert [label for label, _ in drawn] == ["coco R@1"]
