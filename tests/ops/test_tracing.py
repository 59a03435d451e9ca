"""What torch.compile is told of functions, and what that costs where nothing is compiled."""

from __future__ import annotations

import subprocess
import sys

import torch

from clipfast.ops.tracing import constant_in_graphs


def test_constant_in_graphs_marks_as_torch_does():
    assert vars(constant_in_graphs(lambda: 0)) == vars(
        torch.compiler.assume_constant_result(lambda: 0)
    )


def test_constant_in_graphs_is_called_while_a_graph_is_traced():
    seen = []

    @constant_in_graphs
    def number(device):
        seen.append(id(device))  # no graph can hold this
        return 7

    added = torch.compile(lambda x: x + number(x.device), backend="eager", fullgraph=True)
    assert added(torch.zeros(1)).item() == added(torch.zeros(1)).item() == 7
    assert len(seen) == 1


def test_the_loss_is_imported_without_the_compiler():
    code = "import sys, clipfast.loss, clipfast.ops; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
