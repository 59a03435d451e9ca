"""What a logging row says of a step beside its loss."""

import itertools
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipfast.data import ImageTextBatch
from clipfast.data.parted import PartedBatch
from clipfast.engine.deepspeed.norms import GradientNorms
from clipfast.engine.deepspeed.wrap import step_figures
from clipfast.engine.observing import observer as observer_module
from clipfast.engine.observing import rates
from clipfast.engine.observing.observer import Observer
from clipfast.engine.observing.parts import PartTimer
from clipfast.engine.observing.phases import PHASES, Steps
from clipfast.engine.observing.rates import Utilisation
from clipfast.engine.observing.usage import memory_figures
from clipfast.models import create_model
from clipfast.models.step_flop import pair_flop
from clipfast.optim.groups import TOWERS
from tests.engine.launching import documented
from tests.engine.plans import plan
from tests.host_reads import no_host_reads

ENGINE = Path(rates.__file__).parents[1]


class Engine:
    """What a step asks of DeepSpeed, around a small model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = create_model("ViT-tiny", vision_layers=1, text_layers=1, vocab_size=500)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.gradient_norms = GradientNorms(self, ["image"], 0)
        self.skipped_steps = 0

    def __call__(self, *inputs, **options):
        return self.module(*inputs, **options)

    def backward(self, loss, scale_wrt_gas=True) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()

    def get_global_grad_norm(self) -> None:
        return None


def batches(size: int = 8):
    lengths = torch.full((size,), 5)
    tokens = torch.full((size, 5), 499)
    places = np.arange(size)
    for index in itertools.count():
        yield ImageTextBatch(
            torch.randn(size, 3, 64, 64), tokens, lengths, 0, index, places, places
        )


class Heard:
    def __init__(self) -> None:
        self.phases: list[str] = []

    def enter(self, phase: str) -> None:
        self.phases.append(phase)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_logged_step_has_every_part_and_one_that_is_not_has_none(micro_batches):
    made = plan(batch_size=8, micro_batch=8 // micro_batches)
    observer = Observer(made, Engine(), pytest.fail, 0, 9)
    stream = batches()
    observer.step(stream, is_logged=False)
    assert observer._parts is None
    observer.step(stream, is_logged=True)
    row = observer.figures(2, 2, 0.5)
    assert {f"seconds/{phase}" for phase in PHASES} <= row.keys()
    assert all(value > 0 for name, value in row.items() if name.startswith("seconds/"))
    assert (row["samples"], row["images_per_second"], row["seconds/step"]) == (16, 32, 0.25)
    assert row["grad_norm/image"] == pytest.approx(row["grad_norm"])
    assert 0.05 < row["memory/host"] < 100
    assert row.keys() <= documented("every row")


@pytest.mark.usefixtures("process_group")
def test_an_observed_step_leaves_the_share_in_its_micro_batches():
    """What would put it together would decode and hold all of it."""
    made = plan(batch_size=8, micro_batch=4)
    parts = next(batches()).parts(2)
    batch = PartedBatch(2, parts.__getitem__, lambda passes: None, 0, 0)
    observer = Observer(made, Engine(), pytest.fail, 0, 9)
    observer.step(iter([batch]), is_logged=True)
    assert observer.figures(1, 1, 0.5)["samples"] == 8
    assert "_whole" not in vars(batch)


@pytest.mark.usefixtures("process_group")
def test_a_step_waits_for_no_device_whether_it_is_logged_or_not(monkeypatch):
    """The step itself is looked at elsewhere: here stands in for it what it calls."""

    def step(engine, batch, micro_batches, *others):
        assert len(batch.parts(micro_batches)[0].images) == 8
        parameter = engine.optimizer.param_groups[0]["params"][0]
        parameter.grad = torch.ones_like(parameter)
        engine.step()
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(observer_module, "train_step", step)
    observer = Observer(plan(batch_size=8), Engine(), pytest.fail, 0, 9)
    (batch,) = itertools.islice(batches(), 1)
    for is_logged in (False, True):
        with no_host_reads():
            observer.step(iter([batch]), is_logged=is_logged)


def test_phases_of_a_step_begin_where_the_step_calls():
    heard, steps = Heard(), Steps()
    steps.listeners = [heard]
    engine, objective = steps.engine(_Silent()), steps.objective(_Silent())
    batch = steps.next(iter([_Silent()]))
    for m in range(2):
        batch.parts(2, passes=2)[m]
        engine()
    objective.prepare()
    objective.loss()
    for m in range(2):
        batch.parts(2, passes=2)[m]
        engine()
        engine.backward()
        engine.step()
    steps.enter("")
    first = ["data", "forward", "data", "forward", "loss"]
    second = ["data", "loss", "backward", "optimizer", "data", "optimizer", "backward", "optimizer"]
    assert heard.phases == [*first, *second, ""]
    steps.listeners.clear()
    plain = _Silent()
    assert steps.engine(plain) is plain
    assert steps.objective(plain) is plain


class _Silent:
    """An engine, an objective and a batch that do nothing."""

    def __call__(self, *inputs, **options):
        pass

    backward = step = prepare = loss = __call__

    def parts(self, count, passes):
        return [SimpleNamespace(lengths=torch.ones(2))] * count


def test_what_micro_batches_are_waited_for_counts_as_data():
    class Slow(list):
        def __getitem__(self, m):
            time.sleep(0.02)
            return super().__getitem__(m)

    steps = Steps()
    made = [SimpleNamespace(lengths=torch.tensor([m])) for m in range(3)]
    batch = steps.next(iter([SimpleNamespace(parts=lambda count, passes: Slow(made[:count]))]))
    assert list(batch.parts(3, passes=2)) == made
    assert steps.lengths.tolist() == [2]
    assert 0.06 <= steps.take_waited() < 1
    assert steps.take_waited() == 0


def test_a_part_timer_adds_up_what_a_phase_takes():
    timer = PartTimer(torch.device("cpu"))
    for phase in ("data", "forward", "data", ""):
        timer.enter(phase)
        time.sleep(0.01)
    seconds = timer.seconds()
    assert list(seconds) == ["data", "forward"]
    assert seconds["data"] >= 0.02
    assert seconds["forward"] >= 0.01


def test_utilisation_is_what_the_model_needs_by_what_the_cards_could():
    made = plan(ranks=4, batch_size=32)
    lengths = torch.full((8,), 9)
    figures = Utilisation(made, pytest.fail, card="NVIDIA A100-SXM4-80GB").figures(1e5, lengths)
    flop = pair_flop(made.architecture, lengths, 32)
    # Of float32 whose products an A100 takes in full.
    assert figures == {"mfu": pytest.approx(1e5 * flop / (4 * 19.5e12))}
    assert documented("a GPU whose peak is known") == figures.keys()
    assert Utilisation(made, pytest.fail).figures(1e5, lengths) == {}


def test_a_model_that_cannot_be_counted_costs_one_line(monkeypatch):
    def fails(*_):
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(rates, "pair_flop", fails)
    said: list[str] = []
    utilisation = Utilisation(plan(), said.append, card="NVIDIA H200")
    assert said == ["mfu is not logged: the model's FLOP cannot be counted (no fake kernel)"]
    assert utilisation.figures(1.0, torch.ones(1)) == {}


def test_memory_of_a_gpu_is_documented(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 4e9)
    figures = memory_figures(torch.device("cuda"))
    assert (figures["memory/device"], figures["memory/device_reserved"]) == (3.0, 4.0)
    assert figures.keys() - memory_figures(torch.device("cpu")).keys() == documented("a GPU")


def test_half_precision_tells_its_scale_and_what_it_skipped():
    engine = Engine()
    engine.optimizer.loss_scale = 256.0
    engine.skipped_steps = 2
    engine.get_global_grad_norm = lambda: 1.0
    half = step_figures(engine, torch.float16)
    assert half == {"grad_norm": 1.0, "loss_scale": 256.0, "skipped_steps": 2}
    names = documented("fp16", "fp16; elsewhere once there is one")
    assert half.keys() - {"grad_norm"} == names


def test_every_documented_figure_is_written_somewhere():
    """Those of a run on a CPU are compared with its rows in test_training.py."""
    sources = (path.read_text() for path in ENGINE.rglob("*.py"))
    literals = {name for text in sources for name in re.findall(r'"([a-z_/]+)"', text)}
    towers = {f"grad_norm/{tower}" for tower in TOWERS}
    parts = {f"seconds/{phase}" for phase in PHASES}
    assert documented() <= literals | towers | parts
