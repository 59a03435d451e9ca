"""README and docs: code blocks run, commands exist, links and names lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from clipfast.doctor.options import default_config
from clipfast.engine import openclip
from clipfast.engine.cli import parse
from clipfast.engine.recipes import PLAN
from clipfast.plan.command import build_parser
from tests import commands
from tests.docs_pages import PAGES, ROOT, Block, blocks_of, commands_of, name_of
from tests.needs import need

README_LINES = 200
CHECKED = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(block.runs for block in blocks_of(page))]
PYTHON_FILES = [
    path
    for folder in ("clipfast", "kernels", "benchmarks", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Modules whose public names the reference must show.
PUBLIC = (
    "checkpoint",
    "data",
    "engine",
    "eval",
    "integrations",
    "loss",
    "models",
    "ops",
    "optim",
    "tokenizer",
)


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_docs_code_blocks_run(page):
    if "import open_clip" in page.read_text():
        need("open_clip")
    if "clipfast.curate" in page.read_text():
        need("pyarrow")
    done = commands.run([sys.executable, "-m", "tests.docs_pages", str(page)], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("block", [b for b in CHECKED if b.language == "python"], ids=str)
def test_docs_python_blocks_compile(block):
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in CHECKED if b.language == "sh"], ids=str)
def test_docs_commands_exist(block):
    lines = commands_of(block)
    assert lines
    for words in lines:
        check_command(block, words)


def check_command(block: Block, words: list[str]) -> None:
    """Raises where a program, a target or an option does not exist."""
    program, *rest = words
    recipe = next((i for i, word in enumerate(words) if word.startswith("recipes/")), None)
    if program == "make":
        targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets[1].split()), block
    elif "clipfast.doctor" in words:
        module = words.index("clipfast.doctor")
        if program != "python":
            launcher_parses(program, words[1 : module + 1])
        parse(default_config(), words[module + 1 :])
    elif words[:3] == ["python", "-m", "clipfast.torchrun"]:
        check_command(block, ["torchrun", *rest[2:]])
    elif program == "sbatch":
        # Its own options stand before the script, and are none of ours.
        assert recipe is not None
        assert (ROOT / words[recipe]).suffix == ".sbatch"
        assert (ROOT / words[recipe]).is_file(), block
        recipe_parses(words[recipe + 1], words[recipe + 2 :])
    elif program == "kubectl":
        assert rest[:2] == ["apply", "-f"]
        assert (ROOT / rest[2]).is_file(), block
    elif words[:3] == ["python", "-m", "clipfast.plan"]:
        ours, rest = build_parser().parse_known_args(words[3:])
        recipe_parses(ours.recipe, rest)
    elif "clipfast.eval" in words:
        module = words.index("clipfast.eval")
        if program != "python":
            launcher_parses(program, words[1 : module + 1])
        subcommand, *given = words[module + 1 :]
        assert options_in(given) <= options_of("clipfast.eval", subcommand), block
    elif words[:3] == ["python", "-m", "clipfast.curate"]:
        assert options_in(words[4:]) <= options_of("clipfast.curate", words[3]), block
    elif words[:2] == ["python", "-m"]:
        assert options_in(rest[2:]) <= options_of(rest[1]), block
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"^\.\[(.+)\]$", "\n".join(rest), re.MULTILINE)
        assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras), block
    elif recipe is not None:
        launcher_parses(program, words[1 : recipe + 1])
        recipe_parses(words[recipe], words[recipe + 1 :])
    elif program == "python" and rest[0].startswith("benchmarks/"):
        source = (ROOT / rest[0]).read_text()
        assert "__main__" in source, block
        assert all(word.lstrip("-") in source for word in rest[1:]), block
    else:
        pytest.fail(f"{block}: nothing is known of {program!r}")


def options_in(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


@cache
def options_of(module: str, *subcommand: str) -> set[str]:
    """The options that ``python -m module --help`` names."""
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    done = commands.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def launcher_help() -> str:
    from torch.distributed.run import get_args_parser

    return get_args_parser().format_help()


def launcher_parses(program: str, words: list[str]) -> None:
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words)
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parse_args(words)
    else:
        assert (program, len(words)) == ("python", 1), words


def recipe_parses(path: str, words: list[str]) -> None:
    source = (ROOT / path).read_text()
    namespace = {"__name__": "recipe"}
    exec(compile(source, path, "exec"), namespace)
    parse(namespace["config"](), words)


def test_docs_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES, f"{len(lines)} lines: move what is long to docs/"


@cache
def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """What a link may name behind ``#``: headings, and the names of the API reference."""
    text = prose(page)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_docs_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name_of(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)}: {target} is no heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_docs_files_exist(page):
    folders = "clipfast|kernels|csrc|benchmarks|recipes|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)", prose(page)):
        assert "/NAME/" in name or (ROOT / name).exists(), (
            f"{name_of(page)} names {name}, which is not there"
        )


def reference() -> dict[str, str]:
    """Name -> page of the API reference."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    found = (
        (name, p.name) for p in pages for name in re.findall(r"(?m)^::: (\S+)$", p.read_text())
    )
    return dict(found)


def test_docs_reference_names_exist():
    for name in reference():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("package", PUBLIC)
def test_docs_reference_has_every_public_name(package):
    module = importlib.import_module(f"clipfast.{package}")
    shown = {id(getattr(importlib.import_module(m), a)) for m, a in map(_split, reference())}
    public = {name: getattr(module, name) for name in module.__all__}
    missing = [name for name, it in public.items() if callable(it) and id(it) not in shown]
    assert not missing, f"docs/reference lacks {missing} of clipfast.{package}"


def _split(name: str) -> tuple[str, str]:
    module, _, attribute = name.rpartition(".")
    return module, attribute


def first_column(text: str) -> list[str]:
    """The first cells of all tables, heads left out."""
    rows = re.findall(r"^\| (.*?) \|", re.sub(r"(?m)^\|.*\|\n(?=\| ---)", "", text), re.MULTILINE)
    return [cell for cell in rows if not cell.startswith("---")]


def test_docs_from_openclip_has_every_argument_of_open_clip():
    need("open_clip_train")
    spec = find_spec("open_clip_train")
    params = Path(spec.submodule_search_locations[0], "params.py").read_text()
    theirs = set(re.findall(r"""add_argument\(\s*["'](--[\w-]+)["']""", params))
    cells = first_column((ROOT / "docs" / "from-openclip.md").read_text())
    ours = [cell.strip("`") for cell in cells if re.fullmatch(r"`--[\w-]+`", cell)]
    assert len(theirs) > 80
    assert set(ours) == theirs
    assert len(ours) == len(set(ours))


def test_docs_from_openclip_says_what_the_command_line_says():
    text = (ROOT / "docs" / "from-openclip.md").read_text()
    rows = re.findall(r"^\| (`--[\w-]+`) \| (.*) \|$", text, re.MULTILINE)
    assert {flag.strip("`"): cell for flag, cell in rows} == openclip.FLAGS
    values = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`--precision .*) \|$", text, re.MULTILINE)
    told = {name: cell for names, cell in values for name in re.findall(r"\w+", names)}
    assert {name: told[name] for name in openclip.PRECISIONS} == openclip.PRECISIONS
    assert set(told) - set(openclip.PRECISIONS) == {"fp32", "fp16", "bf16"}


@cache
def all_options() -> set[str]:
    """Every option of a recipe, of the programs beside it, of its launchers and the benchmarks."""
    done = commands.run([sys.executable, "recipes/vit_b32.py", "--help"], cwd=ROOT)
    found = set(re.findall(r"--[a-z][a-z0-9.-]*", done.stdout)) | {PLAN}
    for module in ("clipfast.data.pack", "clipfast.data.index", "clipfast.doctor", "clipfast.plan"):
        found |= options_of(module)
    found |= set(re.findall(r"--[a-z][a-z-]*", launcher_help()))
    for script in (ROOT / "recipes" / "launch").glob("*.sbatch"):
        found |= set(re.findall(r"(?m)^#SBATCH (--[a-z-]+)", script.read_text()))
    programs = (ROOT / "clipfast").glob("*/commands/*.py")
    for script in (*(ROOT / "benchmarks").rglob("*.py"), *programs):
        found |= set(re.findall(r'add_argument\(\s*"(--[a-z][a-z0-9.-]*)"', script.read_text()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_docs_options_exist(page):
    text = prose(page)
    if page.name == "from-openclip.md":
        # OpenCLIP's flags stand in the first column of its tables.
        text = re.sub(r"(?m)^\| .*? \|", "|", text)
        text = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(--[a-z][a-z0-9.-]*)", text))
    # The spelling of 0.1, which the page says, and what a test above compares with OpenCLIP.
    named -= {
        "--model.checkpoint",
        "--help",
        "--local-loss",
        "--gather-with-grad",
    }
    assert named <= all_options(), f"{name_of(page)}: {sorted(named - all_options())}"


@cache
def literals() -> list[str]:
    """Every string of the package and of its build, with … for what an f-string fills in."""
    found = []
    build = [ROOT / "setup.py", *sorted((ROOT / "csrc" / "building").glob("*.py"))]
    for path in [*(p for p in PYTHON_FILES if "benchmarks" not in p.parts), *build]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "…", node.value))
    return found


def test_docs_troubleshooting_quotes_real_messages():
    cells = first_column((ROOT / "docs" / "troubleshooting.md").read_text())
    messages = [match[1] for cell in cells if (match := re.match(r"`(.+?)`", cell))]
    assert len(messages) > 40
    for message in messages:
        pieces = [piece for piece in message.split("…") if len(piece.strip(" '.:,`")) > 2]
        assert any(all(p in text for p in pieces) for text in literals()), message


def test_docs_docstrings_are_markdown():
    roles = re.compile(r":(?:func|class|mod|meth|attr):`|^\s*\.\. math|::$", re.MULTILINE)
    for path in (p for p in PYTHON_FILES if "benchmarks" not in p.parts):
        tree = ast.parse(path.read_text())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in (n for n in ast.walk(tree) if isinstance(n, kinds)):
            text = ast.get_docstring(node) or ""
            assert not roles.search(text), f"{path.relative_to(ROOT)}: {text[:60]!r}"


def test_docs_makefile_installs_what_setup_says():
    extras = re.search(r'"docs": (\[.+?\]),\n', (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    pinned = re.search(r"^SITE := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert re.findall(r'"(.+?)"', pinned) == ast.literal_eval(extras)


def variables_read() -> set[str]:
    """Ours that package, kernels and build read."""
    python = [path for path in PYTHON_FILES if "benchmarks" not in path.parts]
    build = [ROOT / "setup.py", *sorted((ROOT / "csrc" / "building").glob("*.py"))]
    native = [path for kind in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(kind)]
    ask = re.compile(
        r"""(?:getenv\(|environ(?:\.get\(|\[)|VARIABLE = )\s*["'](CLIPFAST_[A-Z_]+)["']"""
    )
    return {name for path in [*python, *build, *native] for name in ask.findall(path.read_text())}


def test_docs_variables_are_those_that_the_code_reads():
    told = first_column((ROOT / "docs" / "variables.md").read_text())
    ours = {name for cell in told for name in re.findall(r"`(CLIPFAST_\w+)`", cell)}
    assert len(ours) >= 5
    assert ours == variables_read()


def test_docs_variables_of_the_doctor_are_explained():
    from clipfast.doctor.checks import variables

    text = (ROOT / "docs" / "variables.md").read_text()
    bite = {name for name, _ in variables._BITES} | {*variables._ALONE, *variables._MAY_DIFFER}
    missing = {name for name in bite if f"`{name}`" not in text}
    assert missing <= {"NCCL_BLOCKING_WAIT", "PYTORCH_NO_CUDA_MEMORY_CACHING"}
