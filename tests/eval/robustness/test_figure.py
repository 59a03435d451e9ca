"""The scatter plot: every panel, every point and the line are really drawn."""

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.robustness.figure import robustness_figure

RED, BLUE, GREY, LINE = (215, 25, 28), (43, 131, 186), (119, 119, 119), (68, 68, 68)


def entry(dataset, classifier="zeroshot", acc1=0.5, corruption=None):
    return {
        "dataset": dataset, "classifier": classifier, "acc1": acc1,
        "interval": [max(0, acc1 - 0.05), min(1, acc1 + 0.05)], "reference_acc1": 0.7,
        "corruption": corruption, "severity": 3 if corruption else None,
    }  # fmt: skip


def result(shifts, baselines=(), fit=None):
    return {
        "model": "RN50", "dataset": "imagenet1k", "shifts": shifts,
        "baselines": list(baselines), "fit": fit or {},
    }  # fmt: skip


def near(color, path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(pixels - color).max(2) < 12


def panels_with(color, path, count):
    """Which of the panels, side by side, hold a color."""
    columns = np.array_split(near(color, path), count, axis=1)
    return [bool(part.sum() > 20) for part in columns]


def test_figure_has_a_panel_per_shift_and_one_of_all_corruptions(tmp_path):
    shifts = [
        entry("a"), entry("a", "adapted"), entry("b"),
        entry("c-c/fog-3", corruption="fog"), entry("c-c/snow-3", acc1=0.3, corruption="snow"),
    ]  # fmt: skip
    robustness_figure(result(shifts), tmp_path / "r.png")
    assert panels_with(RED, tmp_path / "r.png", 3) == [True, True, True]
    assert panels_with(BLUE, tmp_path / "r.png", 3) == [True, False, False]


def test_figure_draws_baselines_and_their_line(tmp_path):
    others = [
        {"model": f"m{i}", "shift": "a", "reference_acc1": 0.4 + 0.1 * i, "acc1": 0.3 + 0.1 * i}
        for i in range(4)
    ]
    fit = {"a": {"slope": 0.9, "intercept": -0.4, "models": 4}}
    robustness_figure(result([entry("a")]), tmp_path / "alone.png")
    robustness_figure(result([entry("a")], others), tmp_path / "points.png")
    robustness_figure(result([entry("a")], others, fit), tmp_path / "line.png")
    grey = [near(GREY, tmp_path / f"{name}.png").sum() for name in ("alone", "points")]
    assert grey[1] > grey[0] + 50
    dark = [near(LINE, tmp_path / f"{name}.png").sum() for name in ("points", "line")]
    assert dark[1] > dark[0] + 100


@pytest.mark.parametrize("acc1", [0.0, 1.0])
def test_figure_draws_what_has_no_logit_at_the_edge(tmp_path, acc1):
    robustness_figure(
        result([{**entry("a", acc1=acc1), "reference_acc1": acc1}]), tmp_path / "r.png"
    )
    assert near(RED, tmp_path / "r.png").sum() > 20


def test_figure_fills_several_rows(tmp_path):
    robustness_figure(result([entry(name) for name in "abcde"]), tmp_path / "r.png")
    drawn = near(RED, tmp_path / "r.png")
    half = len(drawn) // 2
    assert drawn[:half].sum() > 3 * drawn[half:].sum() > 60
