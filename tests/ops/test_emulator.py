"""The emulated operators beside the real ones: no name of one is taken for the other's."""

from __future__ import annotations

import re
import subprocess


def dynamic_symbols(library, *options: str) -> list[str]:
    command = ["nm", "-D", *options, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in done.stdout.splitlines()]


def test_emulated_library_opens_no_name_to_others(emulated_library):
    assert dynamic_symbols(emulated_library, "--defined-only") == []


def test_emulated_library_takes_nothing_of_cuda_or_of_clipfast_from_others(emulated_library):
    taken = dynamic_symbols(emulated_library, "--undefined-only")
    assert any("torch" in name for name in taken)
    assert [name for name in taken if re.search("cuda|cublas|launch|clipfast|emulat", name)] == []
