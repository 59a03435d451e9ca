"""A CPU's own rates: operators replayed by themselves, and what a plan makes of them."""

import time
from dataclasses import replace

import pytest
import torch

from clipfast.loss.traffic import Transfer
from clipfast.models import CLIP, create_model
from clipfast.models.catalogue import get_config
from clipfast.plan import command
from clipfast.plan.check import Check, check_table
from clipfast.plan.machines import THIS_CPU
from clipfast.plan.measured import Measured, MeasuredRates
from clipfast.plan.planning import step_seconds
from clipfast.plan.question import Question, decided
from clipfast.plan.replay import PassSeconds, replay
from clipfast.plan.trace import Calls, Shape
from tests.plan.questions import question

LENGTHS = [3, 9, 9, 20]
FOUND = Measured(
    towers=PassSeconds(1.0, 2.0, 4.0, 8.0),
    loss=0.5,
    data=0.25,
    update=1e-9,
    bandwidth=1e9,
    collectives={"all_reduce": (0.5, 1e-9), "all_gather": (0.0, 0.0), "reduce_scatter": (0.0, 0.0)},
    process=300_000_000,
)


def on_cpu(ranks: int = 1, **options) -> Question:
    asked = question(gpus=ranks, batch_size=8, **options)
    return Question(asked.config, THIS_CPU, ranks, asked.caption_tokens, pairs=asked.pairs)


def test_calls_note_operators_by_shape_and_leave_views_out():
    x = torch.ones(3, 4)
    with Calls() as calls:
        y = (x @ x.T).T
        y + 1
        y + 2
    counts = {str(call.func): n for call, n in calls.counts.items()}
    assert counts["aten.mm.default"] == 1
    assert "aten.t.default" not in counts
    mm = next(call for call in calls.counts if "mm" in str(call.func))
    assert mm.leaves == (
        Shape((3, 4), (4, 1), torch.float32),
        Shape((4, 3), (1, 4), torch.float32),
    )
    assert mm.run(mm.make()).shape == (3, 3)


def test_shapes_are_made_with_their_strides_even_where_elements_overlap():
    expanded = Shape((2, 3), (0, 1), torch.float32).make()
    assert (expanded.stride(), expanded.isfinite().all().item()) == ((0, 1), True)
    assert Shape((2,), (1,), torch.int64).make().tolist() == [0, 0]
    assert Shape((2,), (1,), torch.bool).make().all()


@pytest.fixture
def one_thread():
    # Processor time of several threads holds what they wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_replay_takes_about_as_long_as_the_towers_themselves():
    """Within a factor of two either way, on a machine that does other things as well."""
    small = get_config("RN-tiny", text_layers=1)
    made = replace(decided(on_cpu())[0], architecture=small)
    planned = replay(made, LENGTHS, time.process_time)
    model, lengths = CLIP(small), torch.tensor(LENGTHS)
    tokens = torch.full((4, 20), 49407)
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(4):
        before = time.process_time()
        text, image = model.encode_text(tokens, lengths), model.encode_image(images)
        (text.sum() + image.sum()).backward()
        times.append(time.process_time() - before)
    assert min(vars(planned).values()) > 0
    assert 0.5 < sum(vars(planned).values()) / min(times) < 2


def test_measured_rates_add_what_a_step_does():
    asked = on_cpu()
    made = decided(asked)[0]
    rates = MeasuredRates(FOUND)
    parameters = sum(p.numel() for p in create_model("RN-tiny").parameters())
    assert step_seconds(asked, made, rates) == pytest.approx(15 + 0.5 + 0.25 + parameters * 1e-9)
    # In four micro-batches everything but loss and update is done four times, and forward twice.
    cut = made.with_micro_batch(2)
    expected = 4 * 15 + 4 * 3 + 0.5 + 8 * 0.25 + parameters * 1e-9
    assert step_seconds(asked, cut, rates) == pytest.approx(expected)


def test_measured_rates_wait_for_every_collective():
    rates = MeasuredRates(FOUND)
    made = decided(on_cpu(ranks=2))[0]
    transfer = Transfer("gradients", "all_reduce", 10**9, times=3, behind="image tower")
    assert rates.travel(made, transfer) == pytest.approx(3 * 0.5 + 1.0)


def test_check_table_has_planned_by_measured():
    asked = on_cpu()
    one = Check(asked, decided(asked)[0], 1.5, 2.0, 900, 1000)
    line = check_table([one], "cpu")[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "RN-tiny, 1 x 8, ZeRO 0, recompute none",
        *("1.5 s", "2 s", "0.75", "900 B", "1 kB", "0.90"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "cpu", "--gpus", "4096"], "--gpu cpu is this machine, whose"),
        (["--gpu", "cpu", "--plot", "x.png"], "--plot draws cards"),
        (["--gpu", "h100", "--check"], "--check runs on this machine"),
        (["--gpu", "cpu", "--check"], "pass --data.train synthetic"),
    ],
)
def test_command_for_this_cpu_refuses_in_words(arguments, said, capsys):
    assert command.run(["recipes/emoji.py", *arguments]) == 2
    assert said in capsys.readouterr().err
