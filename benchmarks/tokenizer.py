"""Throughput of ``clipfast.tokenizer`` against OpenCLIP's ``SimpleTokenizer`` in the same run.

The captions are real English of 5 to 30 words: the emoji captions and keywords of the embedded
sample set into sentences, and sentences of the standard library's docstrings; none comes twice. Two
sets: ``ascii``, and ``mixed``, where 5% carry other scripts, accents, typographic quotes or emoji
and 1% an HTML entity. Both tokenizers keep a table of what they have encoded. Two settings of it:

- ``new captions``: warmed on other captions, then each run takes captions that neither has seen,
  which is how training meets text;
- ``known words``: every caption was encoded before, the most that OpenCLIP's own table can give.

    python benchmarks/tokenizer.py

Rows go to ``benchmarks/results/tokenizer.jsonl`` and the plot beside it, under the default options
or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import itertools
import json
import os
import random
import re
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.parts.common import harness
from benchmarks.parts.common.captions import SAMPLE
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.plots import plot_rows
from benchmarks.parts.common.rows import RowFile, device_name
from clipfast.tokenizer import Tokenizer, tokenize

SUBJECT = "tokenizer"
# A tokenizer runs on the CPU, whatever else the machine has.
DEFAULTS = {"cpu": {"batch": 512, "runs": 20}}
TEMPLATES = (
    "a photo of a {0}, with {1} and {2} in the background",
    "{0} and {1} on a white table next to the window",
    "Vintage poster showing {0}; {1}, {2} and {3}, 24 x 36 inches",
    "My {0} wasn't there when the {1} came back to the old {2}",
    "Stock illustration: {0} (isolated on white) - {1}, {2}, {3}",
    "the best {0} of 2023 | {1} & {2}",
)
NON_ASCII = (
    "at the café in Zürich",
    "(naïve décor, Straßenfest)",
    "\u2014 \u201cthe man\u2019s dog\u201d \u2014",
    "\u2026 a señor\u2019s piñata",
    "Москва, Красная площадь",
    "Αθήνα, Ελλάδα",
    "京都の桜と寺",
    "서울 야경",
    "قهوة الصباح",
    "20 °C, £15 \u2013 £20",
    "\U0001f600\U0001f389",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "Ωmega™ 10µm filter",
)
ENTITIES = ("salt &amp; pepper", "&quot;the end&quot;", "it&#39;s here")


def sample_captions(rng: random.Random) -> Iterator[str]:
    """Yield sentences made of the captions and keywords of the embedded emoji sample."""
    names: set[str] = set()
    for path in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    names.update(json.load(tar.extractfile(member))["keywords"])
                elif member.name.endswith(".txt"):
                    names.add(tar.extractfile(member).read().decode("utf-8").strip())
    choices = sorted(name for name in names if name.isascii())
    for _ in range(4 * len(choices)):
        yield rng.choice(TEMPLATES).format(*rng.sample(choices, 4))


def docstring_sentences() -> Iterator[str]:
    """Yield the sentences of the standard library's docstrings."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                yield from re.split(r"(?<=[.!?:])\s+|\n\s*\n", text)


def build_captions(seed: int) -> tuple[list[str], list[str]]:
    """Return distinct ASCII captions, and the same with 6% of them made mixed."""
    rng = random.Random(seed)
    unique: dict[str, None] = {}
    for sentence in itertools.chain(sample_captions(rng), docstring_sentences()):
        words = sentence.split()
        if 5 <= len(words) <= 30 and sentence.isascii():
            unique[" ".join(words)] = None
    ascii_captions = list(unique)
    rng.shuffle(ascii_captions)
    mixed = []
    for caption in ascii_captions:
        draw = rng.random()
        if draw < 0.06:
            words = caption.split()
            extra = rng.choice(NON_ASCII if draw < 0.05 else ENTITIES)
            words.insert(rng.randrange(len(words)), extra)
            caption = " ".join(words)
        mixed.append(caption)
    return ascii_captions, mixed


def load_open_clip_tokenizer() -> ModuleType:
    """Load OpenCLIP's tokenizer without its package, which imports torchvision."""
    path = Path(sysconfig.get_paths()["purelib"]) / "open_clip" / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer_alone", path)
    if spec is None or not path.exists():
        raise SystemExit("nothing to compare with: pip install open_clip_torch==3.3.0")
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    spec.loader.exec_module(module)
    # The module turns off the threads of the tokenizers package for the whole process.
    os.environ.pop("TOKENIZERS_PARALLELISM")
    if before is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = before
    return module


def next_batch(
    function: Callable[[list[str]], torch.Tensor], batches: list[list[str]]
) -> Callable[[], torch.Tensor]:
    """Return a function of no arguments that tokenizes the next batch at each call."""
    stream = itertools.cycle(batches)
    return lambda: function(next(stream))


def compare(
    captions: list[str], peer: ModuleType, *, batch: int, runs: int, known: bool, **fields: str
) -> list[harness.Row]:
    """Time both tokenizers on the same batches in alternation; return a row for each."""
    ours = Tokenizer()
    theirs = peer.SimpleTokenizer()
    batches = [captions[start : start + batch] for start in range(0, len(captions), batch)]
    batches = [part for part in batches if len(part) == batch]
    warm, timed = (batches, batches[-runs:]) if known else (batches[:-runs], batches[-runs:])
    if len(warm) < runs:
        raise SystemExit(f"{len(captions)} captions are too few for {runs} runs of {batch}")
    for part in warm:
        ours.tokenize(part)
        theirs(part)

    def check() -> None:
        # In full, and by tokenizers of their own, so that the timed ones stay as warm as they are.
        assert torch.equal(tokenize(captions), peer.tokenize(captions)), "ids differ"

    return harness.measure_together(
        {
            "clipfast": next_batch(lambda part: ours.tokenize(part)[0], timed),
            f"OpenCLIP {importlib.metadata.version('open_clip_torch')}": next_batch(theirs, timed),
        },
        check=check,
        warmup=0,
        runs=len(timed),
        items=batch,
        memory=False,
        batch=batch,
        tokenizers=importlib.metadata.version("tokenizers"),
        **fields,
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--batch", type=int, help="captions per call")
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run all settings, print and write the rows."""
    options = parse(build_parser(), argv, DEFAULTS)
    start = time.perf_counter()
    tokenize("a photo of a cat")
    print(f"first call, which builds the engine: {time.perf_counter() - start:.3f} s")
    ascii_captions, mixed = build_captions(seed=0)
    words = sum(len(caption.split()) for caption in ascii_captions)
    share = sum(not caption.isascii() for caption in mixed) / len(mixed)
    print(f"{len(mixed)} captions of {words / len(mixed):.1f} words; mixed: {share:.1%} non-ASCII")

    peer = load_open_clip_tokenizer()
    rows = RowFile(SUBJECT, options, lambda row: (row["case"], row["batch"]))
    for name, captions in (("ascii", ascii_captions), ("mixed", mixed)):
        for known, table in ((False, "new captions"), (True, "known words")):
            new = compare(
                captions,
                peer,
                batch=options.batch,
                runs=options.runs,
                known=known,
                case=f"{name}, {table}",
            )
            rows.add(new)
            ours, theirs = new
            print(
                f"{ours['case']:22} {ours['name']} {ours['items_per_s']:,.0f}/s, {theirs['name']} "
                f"{theirs['items_per_s']:,.0f}/s: {theirs['ratio_to_clipfast']:.1f}x faster"
            )
    rows.finish(plot)


def plot(rows: Sequence[harness.Row], path: Path) -> Path:
    """Draw one bar per tokenizer and setting."""
    return plot_rows(
        rows,
        path,
        title=f"Tokenizing captions, calls of {rows[0]['batch']}, {device_name(rows[0])}",
        group="case",
        unit="captions per second",
    )


if __name__ == "__main__":
    main()
