"""Evaluations leave nothing behind: no memory, no thread, no descriptor."""

import pytest
import torch

from clipfast.engine import DataConfig
from clipfast.engine.evaluate import Evaluations
from tests.engine.test_evaluate import Engine, made
from tests.process_use import ProcessUse, assert_flat, without_the_collector


@pytest.fixture(autouse=True)
def one_thread():
    """Batches are small: threads of torch would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(times: int) -> ProcessUse:
    data = DataConfig(("sample/noto",), ("sample/twemoji",), threads=1, eval_limit=9)
    engine, evaluations = Engine(), Evaluations(made(data=data))
    for _ in range(times):
        (retrieval,) = evaluations.run(engine, lambda entry: None)["retrieval"]
        retrieval.gallery.image(0)
    return ProcessUse.now()


def test_100_evaluations_leave_memory_threads_and_descriptors_as_they_were(process_group):
    # Libraries fill their own pools first.
    before = evaluate(20)
    evaluate(100)
    assert_flat(before, megabytes=8)


def test_evaluations_give_back_threads_and_descriptors_before_python_looks_for_cycles(
    process_group,
):
    with without_the_collector():
        before = evaluate(2)
        evaluate(8)
        assert_flat(before, megabytes=16)
