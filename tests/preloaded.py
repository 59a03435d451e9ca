"""What the fork server of ``tests/ranks.py`` imports, where it is installed. None of it may start a
thread: a fork would lack it."""

import contextlib
import gc
import importlib
import os

# What the imports below have found: ``tests/commands.py`` compares.
ENVIRONMENT = dict(os.environ)

for _name in (
    *("torch._dynamo", "deepspeed", "nvidia.dali.fn", "pytest", "clipfast.engine"),
    *("tests.commands", "tyro", "PIL.Image", "safetensors.torch", "tqdm"),
):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
# Collections of the children leave alone, and do not copy, what is here already.
gc.freeze()
