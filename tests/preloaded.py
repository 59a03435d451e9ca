"""What the fork server of ``tests/ranks.py`` imports, where it is installed. None of it may start a
thread: a fork would lack it."""

import contextlib
import importlib

for _name in ("torch._dynamo", "deepspeed", "nvidia.dali.fn", "pytest", "clipfast.engine"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
