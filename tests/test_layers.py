"""The direction of imports (DESIGN, section 1): nothing points back up.

benchmarks -> recipes -> clipfast.engine, clipfast.integrations, clipfast.curate -> clipfast.eval
                      -> data, models, loss, optim, tokenizer, ...
                      -> clipfast.storage
                      -> clipfast.ops -> clipfast.kernels, clipfast._C
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module may import what lies strictly below it, and its own package.
RANKS = {
    "clipfast.kernels": 0,
    "clipfast._C": 0,
    "clipfast.ops": 1,
    # How files are written: whatever writes one may use it.
    "clipfast.files": 1,
    "clipfast.sink": 1,
    # How pixels are prepared: the loaders do it, and files of weights tell it.
    "clipfast.preprocessing": 1,
    # What a mistyped name probably meant.
    "clipfast.names": 1,
    # What is asked of a GPU, or given to it.
    "clipfast.devices": 1,
    # What a GPU can do at most, by its name.
    "clipfast.cards": 1,
    # How arguments are checked where they come in.
    "clipfast.arguments": 1,
    # Where bytes are: data, checkpoints and results reach a file or a store through it.
    "clipfast.storage": 2,
    # Everything else in clipfast is a sibling in the middle: rank 3.
    # Measures a model on data.
    "clipfast.eval": 4,
    # Chooses data, with the models that it measures.
    "clipfast.curate": 5,
    "clipfast.engine": 5,
    # Other people's models with our parts in them: beside the engine, which does not need it.
    "clipfast.integrations": 5,
    # Looks at all of it; a recipe does not need it.
    "clipfast.doctor": 6,
    # Counts it without running it.
    "clipfast.plan": 6,
    "recipes": 6,
    "benchmarks": 7,  # some measure what a recipe trains
}
MIDDLE = 3
# The only siblings that may be imported across: captions become tokens as they are loaded.
ALLOWED_SIBLINGS = {("clipfast.data", "clipfast.tokenizer")}
TOP_FOLDERS = ("clipfast", "kernels", "recipes", "benchmarks")


def unit_of(module: str) -> str | None:
    """The part of the house a module belongs to; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "clipfast":
        return ".".join(parts[:2])
    return parts[0] if parts[0] in ("recipes", "benchmarks", "tests", "kernels") else None


def rank_of(unit: str) -> int:
    return RANKS.get(unit, MIDDLE)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if parts[0] == "kernels":
        parts.insert(0, "clipfast")
    return ".".join(parts)


def imports_in(source: str, module: str, is_package: bool) -> set[str]:
    """Every module that the source imports, wherever in it and in whatever form."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + is_package
                base = ".".join(filter(None, [*parents[:keep], base]))
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names if base == "clipfast"}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("import_module", "__import__") and node.args:
                text = node.args[0]
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found.add(text.value)
    return found


def breach(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`; None where it may."""
    here, there = unit_of(importer), unit_of(imported)
    if there is None or there == here:
        return None
    if (here, there) == ("benchmarks", "recipes"):
        return None
    if there in ("recipes", "benchmarks", "tests", "kernels"):
        return f"{importer} imports {imported}: nothing imports {there} by that name"
    # `clipfast` itself is light and holds the version: all may import it.
    if there == "clipfast" or imported == "clipfast.__version__":
        return None
    if (here, there) in ALLOWED_SIBLINGS or rank_of(there) < rank_of(here):
        return None
    return f"{importer} imports {imported}: {there} is not below {here}"


def python_files() -> list[Path]:
    return sorted(p for folder in TOP_FOLDERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_layers_imports_point_down(path):
    module = module_name(path)
    imports = imports_in(path.read_text(), module, path.name == "__init__.py")
    breaches = [why for name in sorted(imports) if (why := breach(module, name))]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("clipfast.ops.normalize", "clipfast.loss"),
        ("clipfast.models.vit", "clipfast.engine.train"),
        ("clipfast.models", "clipfast.eval.zero_shot"),
        ("clipfast.eval.zero_shot", "clipfast.engine"),
        ("clipfast.integrations", "clipfast.engine"),
        ("clipfast.models", "clipfast.integrations"),
        ("clipfast.loss", "benchmarks.parts.common.harness"),
        ("clipfast.engine", "recipes.rn50"),
        ("clipfast.kernels.normalize", "clipfast.ops"),
        ("clipfast.ops", "kernels.normalize"),
        ("clipfast.storage", "clipfast.data"),
        ("clipfast.curate", "clipfast.engine"),
        ("clipfast.eval", "clipfast.curate"),
    ],
)
def test_layers_check_refuses_what_points_up(importer, imported):
    assert breach(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("recipes.rn50", "clipfast.engine"),
        ("clipfast.engine.train", "clipfast.loss"),
        ("clipfast.loss", "clipfast.ops"),
        ("clipfast.integrations", "clipfast.models"),
        ("clipfast.ops.normalize", "clipfast._C"),
        ("clipfast.data.loader", "clipfast.tokenizer"),
        ("clipfast.ops", "torch"),
        ("clipfast.data.index", "clipfast.storage"),
        ("clipfast.checkpoint", "clipfast.storage"),
        ("clipfast.curate.match", "clipfast.eval"),
    ],
)
def test_layers_check_accepts_what_points_down(importer, imported):
    assert breach(importer, imported) is None


def test_layers_relative_and_dynamic_imports_are_seen():
    source = (
        "from . import a\nfrom ..loss import b\nfrom clipfast import engine\n"
        "import importlib\nimportlib.import_module('clipfast.eval')\n"
    )
    found = imports_in(source, "clipfast.ops.normalize", is_package=False)
    assert {"clipfast.ops", "clipfast.loss", "clipfast.engine", "clipfast.eval"} <= found


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_layers_kernels_import_only_torch_and_triton(path):
    allowed = {"torch", "triton", "clipfast"} | set(sys.stdlib_module_names)
    imports = imports_in(path.read_text(), module_name(path), path.name == "__init__.py")
    assert {name.split(".")[0] for name in imports} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda p: p.name)
def test_layers_cuda_kernels_include_no_torch_header(path):
    assert path.name.endswith("_kernel.cu"), "setup.py compiles *_kernel.cu only"
    seen, queue = set(), [path]
    while queue:
        file = queue.pop()
        seen.add(file)
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', file.read_text(), re.M):
            assert not re.match(r"(torch|ATen|c10|pybind11)\b", name), f"{file.name}: {name}"
            ours = (file.parent / name).resolve()
            if ours.is_file() and ours not in seen:
                queue.append(ours)


def test_layers_import_clipfast_is_light():
    code = (
        "import sys, clipfast\n"
        "heavy = {'deepspeed', 'nvidia.dali', 'triton', 'clipfast._C', 'clipfast.kernels'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
