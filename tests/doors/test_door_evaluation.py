"""An evaluation from outside the package, in this one file, in the loop of a real run."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipfast.engine import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelOptions,
    ScheduleConfig,
)
from clipfast.eval import Evaluation, EvaluationData, Measured, register
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks

CAPTIONS = ("a red apple", "a dog", "a red apple")


class Echo(Evaluation):
    """Whether equal captions have equal features, and how far apart the pairs of a set are."""

    def __init__(self, data: EvaluationData) -> None:
        self.sources = data.sources

    def check(self, data) -> None:
        for source in self.sources:
            if data.count(source) > 20:
                raise ValueError(f"--data.eval {source}: echo takes 20 pairs at most")

    def run(self, encoder) -> list[Measured]:
        texts = encoder.texts(CAPTIONS)
        equal = float(torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1]))
        pairs = encoder.pairs(self.sources[0])
        gap = (pairs.image_features - pairs.text_features).norm(dim=1).mean().item()
        pixels = torch.zeros(2, 3, 64, 64)
        blank = (encoder.images(pixels)[0] - encoder.images(pixels)[1]).abs().max().item()
        scalars = {"eval/echo/equal": equal, "eval/echo/gap": gap, "eval/echo/blank": blank}
        return [Measured(scalars=scalars, lines=[f"echo of {len(pairs)}: {pairs.caption(0)}"])]

    def summary(self, measured) -> list[str]:
        return [f"echo, at last: {measured[0].scalars['eval/echo/equal']:.0f}"]

    def figure(self, measured, path) -> bool:
        Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
        return True


def config(folder: str, **data) -> Config:
    return Config(
        model=ModelOptions("RN-tiny"),
        data=DataConfig(train=("sample/noto",), eval=("sample/twemoji",), **data),
        eval=EvaluationConfig(("retrieval", "echo")),
        schedule=ScheduleConfig(max_steps=2),
        logging=LoggingConfig(
            folder, "run", 1, 1, tensorboard=False, figures=f"{folder}/pictures", progress=False
        ),
        checkpoint=CheckpointConfig(every_steps=0),
        batch_size=8,
    )


def _train(folder: str, port: int) -> str:
    """What the trainer says when a set is too large; then a run of two steps."""
    from clipfast.engine.plan import decide
    from clipfast.engine.trainer import Trainer

    register("echo", Echo)
    process = start_rank(port)
    with pytest.raises(ConfigError) as refused:
        Trainer(decide(config(folder, eval_limit=21), process))
    result = Trainer(decide(config(folder, eval_limit=16), process)).run()
    assert list(result.measured) == ["retrieval", "echo"]
    assert result.retrieval[0].pairs == 16
    return str(refused.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("echo")
    return folder, run_ranks(1, _train, str(folder), free_port())[0]


def test_door_evaluation_scalars_land_in_metrics_each_time(run):
    folder, _ = run
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    ours = [row for row in rows if "eval/echo/equal" in row]
    assert [row["step"] for row in ours] == [1, 2]
    assert {(row["eval/echo/equal"], row["eval/echo/blank"]) for row in ours} == {(1.0, 0.0)}
    assert ours[0]["eval/echo/gap"] != ours[1]["eval/echo/gap"] > 0
    # Retrieval stays a row of its own, before it.
    key = "eval/sample/twemoji/image_to_text/R@1"
    assert [row["step"] for row in rows if key in row] == [1, 2]


def test_door_evaluation_draws_its_own_picture(run):
    folder, _ = run
    assert {p.name for p in (folder / "pictures").iterdir()} == {
        "curves.png",
        "retrieval.png",
        "echo.png",
    }
    assert Image.open(folder / "pictures" / "echo.png").getpixel((0, 0)) == (1, 2, 3)


def test_door_evaluation_refuses_before_anything_is_built(run):
    _, refusal = run
    assert refusal == "--data.eval sample/twemoji: echo takes 20 pairs at most"
