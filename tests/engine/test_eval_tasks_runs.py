"""Whole runs that measure tasks: every ZeRO stage, one rank and two, the same training."""

import json

import pytest
import torch
from safetensors.torch import load_file

from clipfast.eval.results import ResultFile
from tests.engine.launching import losses, train_in_turn
from tests.engine.test_eval_tasks import CLASSES, TEST, write_sets

pytestmark = [pytest.mark.slow, pytest.mark.needs("nvidia.dali")]
STEPS = ("--max-steps", "2", "--model.name", "ViT-tiny", "--batch-size", "16")
STAGES = (3,)
OTHER_STAGES = (0, 1, 2)


def tasks(place, *kinds):
    """Options that measure some tasks every step, in batches that ranks cannot share evenly."""
    sets = {"retrieval": f"retrieval={place}/seen.csv"}
    asked = [sets.get(kind, f"{kind}={place}/animals") for kind in kinds]
    return ("--eval.tasks", *asked, "--eval.every", "1", "--eval.shots", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    """One rank: with tasks, and without."""
    folder = tmp_path_factory.mktemp("alone")
    every = tasks(place, "zeroshot", "probe", "fewshot", "retrieval")
    batches = ("--data.eval-batch-size", "4")
    stage = ("--zero-stage", "0")
    train_in_turn(
        folder,
        {
            "plain": (*STEPS, *stage),
            "tasks": (*STEPS, *stage, *every, *batches, "--logging.tensorboard"),
        },
    )
    return folder


@pytest.fixture(scope="module")
def together(place, tmp_path_factory, is_thorough):
    """Two ranks: ZeRO-3 or every stage, and the image tower that is no ViT under ZeRO-3."""
    folder = tmp_path_factory.mktemp("together")
    every = tasks(place, "zeroshot", "probe", "fewshot", "retrieval")
    few = tasks(place, "zeroshot", "probe")
    all_of = {0: few, 1: few, 2: few, 3: every}
    batches = ("--data.eval-batch-size", "4")
    runs = {"plain": (*STEPS, "--zero-stage", "3")}
    for stage in (*STAGES, *OTHER_STAGES) if is_thorough else STAGES:
        runs[f"stage{stage}"] = (*STEPS, "--zero-stage", str(stage), *all_of[stage], *batches)
    resnet = ("--max-steps", "1", "--batch-size", "16", "--zero-stage", "3", "--precision", "bf16")
    runs["resnet"] = (*resnet, *few, *batches)
    train_in_turn(folder, runs, ranks=2)
    return folder


def assert_same_weights(one, other):
    first, second = (load_file(run / "final.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def scalars(folder, step):
    """All that tasks left in metrics.jsonl at a step."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = {}
    for row in rows:
        if row.get("step") == step:
            found |= {name: value for name, value in row.items() if name.startswith("eval/")}
    return found


def accuracies(folder, step):
    """Of these, what weights and images decide."""
    times = ("/seconds", "/waited", "/share")
    return {name: v for name, v in scalars(folder, step).items() if not name.endswith(times)}


def test_a_run_with_tasks_trains_the_same_weights(alone):
    plain, measured = alone / "plain", alone / "tasks"
    assert losses(plain) == losses(measured)
    assert_same_weights(plain, measured)


def test_two_ranks_with_tasks_train_the_same_weights_under_zero_3(together):
    assert_same_weights(together / "plain", together / "stage3")


@pytest.mark.parametrize(
    "stage", [*STAGES, *(pytest.param(n, marks=pytest.mark.thorough) for n in OTHER_STAGES)]
)
@pytest.mark.parametrize("step", [1, 2])
def test_two_ranks_find_what_one_finds(alone, together, stage, step):
    one, two = (accuracies(f, step) for f in (alone / "tasks", together / f"stage{stage}"))
    assert len(two) == (30 if stage == 3 else 9)
    one = {name: one[name] for name in two}
    exact = [name for name in one if "/zeroshot/" in name and not name.endswith("log_loss")]
    exact += [name for name in one if "/retrieval/" in name]
    assert {name: two[name] for name in exact} == pytest.approx({name: one[name] for name in exact})
    # Fits end within their tolerance: an image may change sides.
    for name in one.keys() - set(exact):
        assert two[name] == pytest.approx(one[name], abs=1.01 / (len(CLASSES) * TEST)), name


def test_half_precision_and_resnets_are_measured_too(together):
    found = accuracies(together / "resnet", 1)
    assert 0 <= found["eval/animals/zeroshot/acc1"] <= 1
    assert 0 <= found["eval/animals/probe/lp_acc1"] <= 1


def test_time_is_told_and_no_rank_waits_long(together):
    for stage in STAGES:
        found = scalars(together / f"stage{stage}", 2)
        for task in ("zeroshot", "probe"):
            head = f"eval/animals/{task}"
            assert 0 < found[f"{head}/share"] < 1
            assert 0 <= found[f"{head}/waited"] <= found[f"{head}/seconds"]


def test_results_and_pictures_are_there_at_the_end(alone):
    run = alone / "tasks"
    names = sorted(path.name for path in (run / "results").glob("*.json"))
    assert names == [
        "animals_ViT-tiny_few_shot_en.json",
        "animals_ViT-tiny_linear_probe_en.json",
        "animals_ViT-tiny_zeroshot_classification_en.json",
        "seen_ViT-tiny_zeroshot_retrieval_en.json",
    ]
    task = "zeroshot_classification"
    found = ResultFile(run / "results", "animals", "ViT-tiny", str(run), task).existing()
    assert found["images"] == len(CLASSES) * TEST
    assert found["metrics"]["acc1"] == scalars(run, 2)["eval/animals/zeroshot/acc1"]
    events = b"".join(path.read_bytes() for path in run.glob("events.out.tfevents.*"))
    for tag in (b"eval/zeroshot", b"eval/fewshot", b"eval/animals/zeroshot/acc1_low"):
        assert tag in events
    assert events.count(b"\x89PNG") == 2
