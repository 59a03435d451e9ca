"""A run planned is the run: its decisions, its memory, its length; and what is said of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.parts.tables import planning as page
from clipfast.engine import Config, ConfigError, ModelOptions, ZeroConfig
from clipfast.engine.launch import Process
from clipfast.engine.plan import decide
from clipfast.engine.rank_bytes import rank_bytes
from clipfast.engine.recipes import read_recipe
from clipfast.engine.recomputation import activation_peak
from clipfast.engine.traffic import bytes_sent
from clipfast.plan import command
from clipfast.plan.memory import linear_peak
from clipfast.plan.planning import plan_run
from clipfast.plan.plot import plot, sweep
from clipfast.plan.question import decided, on_machine
from clipfast.plan.record import record
from clipfast.plan.report import report
from clipfast.plan.text import size
from tests import commands
from tests.plan.questions import question

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def planned():
    return plan_run(question())


def test_a_plan_for_cpus_takes_the_runs_own_decisions():
    asked = question(gpus=2, precision="bf16", micro_batch=64, zero=ZeroConfig(2))
    here = Process(0, 0, 2, 2, torch.device("cpu"))
    machine = replace(asked.machine, gpu=None)
    made, notes = decided(replace(asked, machine=machine))
    run = decide(asked.config, here)
    for name in ("dtype", "stage", "local_batch", "micro_batches", "compile", "sums_in_float32"):
        assert getattr(made, name) == getattr(run, name)
    assert notes == []


def test_a_batch_that_does_not_divide_is_padded_and_said():
    made, notes = decided(question(gpus=7))
    assert (made.config.batch_size, made.local_batch) == (1029, 147)
    assert notes == [
        "--batch-size 1024 does not divide by 7 ranks: planned with --batch-size 1029, which the "
        "run needs too"
    ]


@pytest.mark.parametrize("batch", [1, 5, 48, 200])
def test_linear_peak_is_what_would_be_counted(batch):
    made = decided(question(gpus=1, batch_size=2 * batch, micro_batch=batch))[0]
    counted = activation_peak(made, 22)
    assert counted <= linear_peak(made, 22) * (1 + 1e-6)
    assert linear_peak(made, 22) == pytest.approx(counted, rel=0.02 if batch > 32 else 0.3)


def test_plan_counts_memory_of_the_mode_that_it_takes(planned):
    memory = planned.memory
    assert memory.fits
    assert memory.need.total == pytest.approx(rank_bytes(planned.plan, 22).total, rel=0.02)
    assert [mode.plan.recompute for mode in memory.modes] == ["none", "selective", "full"]
    assert memory.stages[0] > memory.stages[1] >= memory.stages[3]
    assert set(memory.cards) == {"v100-16gb", "v100-32gb", "a100-40gb", "h100", "h200", "l40s"}


def test_plan_adds_up(planned):
    assert planned.length.steps == 200
    assert planned.run_seconds == pytest.approx(200 * planned.time.seconds)
    assert planned.gpu_hours == pytest.approx(8 * planned.run_seconds / 3600)
    assert planned.supply.images == pytest.approx(1024 / planned.time.seconds)
    transfers = [travel.transfer for travel in planned.time.travels]
    assert planned.sent == pytest.approx(bytes_sent(transfers, 8))
    peak = 312e12
    assert planned.reached == pytest.approx(planned.pair_flop * 128 / planned.time.seconds / peak)
    assert planned.reached < planned.question.utilisation


def test_micro_batches_cost_a_second_forward_pass():
    whole, cut = (plan_run(question(micro_batch=m)).time.compute for m in (128, 32))
    forward = whole["text forward"] + whole["image forward"]
    assert cut["features, without a graph"] == pytest.approx(forward)
    assert sum(cut.values()) == pytest.approx(sum(whole.values()) + forward, rel=0.01)


def test_recompute_auto_is_chosen_for_the_planned_cards_memory():
    model = ModelOptions("RN-tiny", compile="none", recompute="auto")
    small = question(gpus=1, gpu="v100-16gb", batch_size=12_288, model=model)
    large = replace(small, machine=question(gpu="h200").machine)
    assert plan_run(small).plan.recompute != plan_run(large).plan.recompute == "none"


def test_what_does_not_fit_is_said_with_what_would():
    asked = question(gpus=1, gpu="v100-16gb", batch_size=32_768)
    made = plan_run(asked)
    text = "\n".join(report(made))
    assert not made.memory.fits
    assert "DOES NOT FIT" in text
    largest = made.memory.modes[0].largest
    assert f"none with {largest} (" in text
    fitting = decided(replace(asked, config=replace(asked.config, micro_batch=largest)))[0]
    assert rank_bytes(fitting, 22).total <= made.memory.available


def test_report_and_record_tell_the_same(planned):
    text, told = "\n".join(report(planned)), record(planned)
    assert text.startswith("RN-tiny (")
    assert json.loads(json.dumps(told))["step"]["seconds"] == planned.time.seconds
    assert f"{told['steps']:,} steps" in text
    assert told["memory"]["needed"]["total"] == planned.memory.need.total
    assert told["memory"]["modes"]["full"]["activations"] < told["memory"]["needed"]["activations"]


def test_sweep_goes_as_far_as_the_batch_divides(tmp_path):
    points = sweep(question(batch_size=16), sizes=(1, 4, 16, 64))
    assert [point.gpus for point in points] == [1, 4, 16]
    assert all(point.planned.question.gpus == point.gpus for point in points)
    plot(points, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_read_recipe_takes_its_configuration_and_runs_nothing(tmp_path):
    config = read_recipe(ROOT / "recipes" / "rn50x64.py")
    assert (config.model.name, config.batch_size) == ("RN50x64", 32_768)
    bare = tmp_path / "mine.py"
    bare.write_text(
        "from clipfast.engine import Config, main\nmain(Config(batch_size=48))\nraise SystemExit(9)"
    )
    assert read_recipe(bare) == Config(batch_size=48)
    none = tmp_path / "none.py"
    none.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"none\.py is no recipe"):
        read_recipe(none)
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "absent.py")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes/absent.py"], "absent.py: no such recipe"),
        (["recipes/emoji.py", "--gpu", "a100"], "--gpu a100: no such card"),
        (["recipes/emoji.py", "--gpu", "v100-16gb", "--precision", "bf16"], "has no bfloat16"),
        (["recipes/emoji.py", "--gpu", "h100", "--data.train", "none.tar"], "none.tar"),
        (
            ["recipes/emoji.py", "--gpu", "h100", "--gpus", "2", "--micro-batch", "3"],
            "--micro-batch 2",
        ),
    ],
)
def test_command_refuses_in_words(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command.run(arguments) == 2
    assert said in capsys.readouterr().err


def test_plan_on_a_recipe_prints_the_plan_and_trains_nothing(tmp_path):
    path = tmp_path / "plan.json"
    arguments = ["--plan", "--gpus", "4", "--gpu", "h100", "--json", str(path), "--zero-stage", "2"]
    done = commands.run(
        [sys.executable, "recipes/emoji.py", *arguments, "--logging.dir", str(tmp_path / "runs")],
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("RN-tiny (")
    told = json.loads(path.read_text())
    assert (told["gpus"], told["zero_stage"], told["pairs"]) == (4, 2, 1911)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("gpus", "column"), [(592, 3), pytest.param(64, 1, marks=pytest.mark.thorough)]
)
def test_memory_on_the_page_is_what_is_counted(gpus, column):
    """One mode of each table, counted whole; times and transfers are among the page's tables."""
    asked = page.question_of(gpus)
    made = decided(asked)[0]
    with on_machine(asked.machine):
        need = rank_bytes(made, asked.caption_tokens)
    text = (ROOT / "docs" / "planning.md").read_text()
    table = text.partition(f"<!-- plan memory: {gpus} -->")[2].partition("<!-- end plan -->")[0]
    cells = {
        row.split("|")[1].strip(): row.split("|")[column + 1].strip()
        for row in table.strip().splitlines()
    }
    assert cells["memory of a rank"] == made.recompute
    assert cells["needed at the peak"] == size(need.total)
    assert cells["weights"] == size(need.states.weights)
    assert cells["largest micro-batch"] == str(made.micro_batch)
