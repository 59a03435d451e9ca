"""Results of every task, as the commands write them, with numbers that are made up."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipfast.eval.intervals import clopper_pearson

NASTY = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"


def write(folder: Path, dataset: str, task: str, metrics: dict[str, Any], **more: Any) -> Path:
    """A result, under a name of its own."""
    content = {
        "dataset": dataset,
        "model": "ViT-B/32",
        "pretrained": "runs/base/final.safetensors",
        "task": task,
        "metrics": metrics,
        "language": "en",
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob('*.json'))):03}.json"
    path.write_text(json.dumps(content))
    return path


def zeroshot(
    folder: Path, dataset: str, names: list[str], seed: int = 0, examples: int = 0, **more: Any
) -> Path:
    """A classification of 100 images per class."""
    rng = np.random.default_rng(seed)
    chances = np.full((len(names), len(names)), 1.0)
    np.fill_diagonal(chances, len(names) * rng.uniform(0.3, 4, len(names)))
    counts = np.array([rng.multinomial(100, row / row.sum()) for row in chances])
    right, images = int(counts.trace()), int(counts.sum())
    pairs = [
        {"class": names[i], "taken_for": names[j], "images": int(counts[i, j])}
        for i in range(len(names))
        for j in range(len(names))
        if i != j and counts[i, j]
    ]
    pairs.sort(key=lambda pair: -pair["images"])
    acc1 = right / images
    content = {
        "split": "test",
        "images": images,
        "main_metric": "acc1",
        "intervals": {"acc1": clopper_pearson(right, images)},
        "prompts": {
            "names": {"acc1": acc1 - 0.05},
            "one prompt": {"acc1": acc1 - 0.02},
            "ensemble": {"acc1": acc1},
        },
        "per_class": [
            {
                "name": name,
                "images": 100,
                "right": int(counts[i, i]),
                "recall": int(counts[i, i]) / 100,
                "interval": clopper_pearson(int(counts[i, i]), 100),
            }
            for i, name in enumerate(names)
        ],
        "confusion": counts.tolist() if len(names) <= 100 else None,
        "most_confused": pairs[:50],
        "examples": [example(folder, names, i, rng) for i in range(examples)],
    }
    metrics = {"acc1": acc1, "acc5": None, "mean_per_class_recall": acc1}
    return write(folder, dataset, "zeroshot_classification", metrics, **content, **more)


def example(folder: Path, names: list[str], place: int, rng: np.random.Generator) -> dict[str, Any]:
    """An image with its likeliest classes; every other one is right."""
    file = Path("examples", "made", f"{place}.jpg")
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((64, 64)).save(buffer, "JPEG")
    (folder / file).write_bytes(buffer.getvalue())
    shown = [names[(place + i) % len(names)] for i in range(min(5, len(names)))]
    chances = [0.6, 0.2, 0.1, 0.05, 0.01][: len(shown)]
    return {
        "file": file.as_posix(),
        "image": place,
        "classes": [shown[place % 2]],
        "top": [{"name": n, "probability": p} for n, p in zip(shown, chances, strict=True)],
        "right": place % 2 == 0,
    }


def every_task(folder: Path, names: list[str]) -> None:
    """Results of every task on a few sets."""
    zeroshot(folder, "cifar10", names, examples=6)
    zeroshot(folder, "wds/vtab/pets", [f"pet {i}" for i in range(37)], 1)
    write(
        folder,
        "cifar10",
        "linear_probe",
        {"lp_acc1": 0.91, "lp_acc5": 0.99, "lp_mean_per_class_recall": 0.9},
        chosen_by="accuracy",
        test_images=1000,
        intervals={"lp_acc1": clopper_pearson(910, 1000)},
    )
    write(
        folder,
        "cifar10",
        "few_shot",
        {"zeroshot_accuracy": 0.62, "lp_accuracy_4_shot": 0.66, "prior_accuracy_4_shot": 0.71},
        metric="accuracy",
        **{
            "probe": {
                "shots": [1, 2, 4],
                "scores": [[0.4, 0.45, 0.42], [0.55, 0.5, 0.52], [0.66, 0.65, 0.67]],
                "shots_to_match_zero_shot": 3.1,
            },
            "zero-shot as prior": {
                "shots": [1, 2, 4],
                "scores": [[0.62, 0.63, 0.62], [0.66, 0.65, 0.67], [0.71, 0.7, 0.72]],
                "shots_to_match_zero_shot": 1,
            },
        },
    )
    recalls = {
        f"{way}_retrieval_recall@{k}": 0.1 * k**0.8 for way in ("image", "text") for k in (1, 5, 10)
    }
    write(
        folder,
        "flickr30k",
        "zeroshot_retrieval",
        recalls,
        images=1000,
        intervals={name: [value - 0.02, value + 0.02] for name, value in recalls.items()},
        with_prefix={"prefix": "a photo of ", "metrics": recalls, "intervals": {}},
        chance=dict.fromkeys(recalls, 0.001),
    )
    shifts = [
        {
            "dataset": dataset,
            "classifier": classifier,
            "acc1": acc1,
            "interval": [acc1 - 0.02, acc1 + 0.02],
            "reference_acc1": reference,
            "effective_robustness": effective,
            "relative_robustness": None,
            "images": 7500,
        }
        for dataset, classifier, acc1, reference, effective in (
            ("imagenet-a", "zeroshot", 0.32, 0.63, 0.21),
            ("imagenet-r", "own_names", 0.69, 0.63, None),
            ("imagenet-r", "adapted", 0.55, 0.75, -0.03),
        )
    ]
    fit = {"imagenet-a": {"slope": 1.1, "intercept": -1.9, "models": 4}}
    baselines = [
        {"model": "RN50", "shift": "imagenet-a", "reference_acc1": 0.76, "acc1": 0.03},
        {"model": "RN101", "shift": "imagenet-a", "reference_acc1": 0.78, "acc1": 0.05},
    ]
    by_severity = {"fog": {"1": 0.6, "3": 0.52}, "shot_noise": {"1": 0.55}}
    corruptions = {"zeroshot": {"mean_acc1": 0.5567, "by_corruption": by_severity}}
    more = {"shifts": shifts, "fit": fit, "baselines": baselines, "corruptions": corruptions}
    write(folder, "imagenet1k", "robustness", {"mean_acc1": 0.5}, **more)
    groups = [
        {"value": value, "images": n, "metrics": {"acc1": a}, "interval": [a - 0.05, a + 0.05]}
        for value, n, a in ((names[0], 400, 0.7), ("40 to 49", 300, 0.8))
    ]
    gap = {"lowest": "cat", "highest": "40 to 49", "gap": 0.1, "intervals_overlap": True}
    shares = {"shares": {"animal": 0.125}, "intervals": {"animal": [0.09, 0.17]}}
    design = {
        "added": {"animal": ["gorilla", "ape"]},
        "all": {"images": 700, **shares},
        "groups": {"age": [{"value": "40 to 49", "images": 300, **shares}]},
    }
    more = {"groups": {"age": groups}, "disparities": {"age": gap}, "label_sets": [design]}
    write(folder, "fairface", "groups", {"acc1": 0.74}, **more)
    write(
        folder,
        "country211",
        "geolocation",
        {f"acc_within_{km}km": share for km, share in ((1, 0.05), (25, 0.2), (2500, 0.7))},
    )
