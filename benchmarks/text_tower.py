"""Time and memory of the text tower, forward and backward, against OpenCLIP's.

Timed: ``encode_text`` from tokens to features, and back from a fixed gradient of the features to
those of all parameters. Both towers have the same random weights and see the same captions:
OpenCLIP's padded to 77 tokens, as its tokenizer gives them, clipfast's cut to the longest with
their lengths, as its loader gives them. OpenCLIP's time does not depend on the captions; ours does,
so there are two sources (``captions.py``): the embedded sample's, and web-like lengths of mean 20.

Before it is timed, each contender's features and gradients are compared with those of OpenCLIP's
tower in float32; under autocast it may be off by twice what OpenCLIP is.

    python benchmarks/text_tower.py                        what this machine's default is
    python benchmarks/text_tower.py --widths 512 --batch 64 --captions web

Rows go to ``benchmarks/results/text_tower.jsonl`` and the plot beside it, under the default options
or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.parts.common import harness, peers
from benchmarks.parts.common.captions import SOURCES, Captions, make_captions
from benchmarks.parts.loss.report import device_name
from benchmarks.parts.step import measure as step_measure
from benchmarks.parts.step import report as step_report
from benchmarks.parts.step.check import exact_products, relative_error, tower_of
from benchmarks.parts.step.contenders import PRECISIONS, Case, NotMeasured, share_parameters

SUBJECT = "text_tower"
# A model with a text tower of that width; its image tower is cut to almost nothing.
MODELS = {512: "ViT-B/32", 640: "RN50x4", 768: "ViT-L/14", 1024: "RN50x64"}
CONTENDERS = ("clipfast", "clipfast-compile", "patched", "openclip", "openclip-compile")
DEFAULTS = {
    "cpu": {
        "widths": [512],
        "batch": 32,
        "precisions": ["fp32", "amp_bf16"],
        "contenders": ["clipfast", "patched", "openclip", "openclip-compile"],
        "runs": 3,
    },
    "cuda": {
        "widths": [512, 768],
        "batch": 1024,
        "precisions": ["amp_bf16"],
        "contenders": list(CONTENDERS),
        "runs": 20,
    },
}
FLOOR, SLACK = 2e-5, 2.0


@dataclass(frozen=True)
class Tower:
    """A contender.

    Attributes:
        key: One of :data:`CONTENDERS`.
        name: As in the table.
        model: Holds the parameters.
        encode: Captions -> features ``[B, D]``.
    """

    key: str
    name: str
    model: nn.Module
    encode: Callable[[Captions], Tensor]

    @property
    def is_ours(self) -> bool:
        return self.key.startswith("clipfast")

    def run(self, case: Case, captions: Captions, cotangent: Tensor) -> Tensor:
        """What is timed: features, and gradients into the parameters."""
        for parameter in self.model.parameters():
            parameter.grad = None
        with case.autocast():
            features = self.encode(captions)
        features.backward(cotangent.to(features.dtype))
        return features.detach()


def overrides_of(width: int) -> dict[str, int]:
    """Changes to :data:`MODELS` that leave almost nothing of the image tower."""
    if MODELS[width].startswith("RN"):
        return {"image_size": 32, "vision_layers": (1, 1, 1, 1), "vision_width": 32}
    return {"image_size": 28, "patch_size": 14, "vision_layers": 1, "vision_width": 64}


def make_towers(case: Case, keys: Sequence[str]) -> tuple[list[Tower], list[step_measure.Absence]]:
    """The towers asked for, around two sets of equal weights."""
    ours, theirs = peers.build_pair(case.model, device=case.device, **dict(case.overrides))
    open_clip = f"OpenCLIP {peers.open_clip_version()}"

    def encode_ours(model: nn.Module) -> Callable[[Captions], Tensor]:
        return lambda captions: model.encode_text(captions.cut_tokens, captions.lengths)

    def make(key: str) -> Tower:
        if key == "clipfast":
            return Tower(key, key, ours, encode_ours(ours))
        if key == "clipfast-compile":
            from clipfast.models.compile import compile_blocks

            compiled = share_parameters(ours)
            compile_blocks(compiled)
            return Tower(key, "clipfast, compiled blocks", compiled, encode_ours(compiled))
        if key == "patched":
            import clipfast

            patched = share_parameters(theirs)
            report = clipfast.patch_open_clip(patched, loss=False)
            if "encode_text" not in report.swapped:
                raise NotMeasured(f"not swapped: {report.left_alone}")
            name = f"{open_clip}, patch_open_clip"
            return Tower(key, name, patched, lambda captions: patched.encode_text(captions.tokens))
        if key == "openclip":
            return Tower(key, open_clip, theirs, lambda c: theirs.encode_text(c.tokens))
        compiled = torch.compile(theirs.encode_text)
        name = f"{open_clip}, torch.compile"
        return Tower(key, name, theirs, lambda captions: compiled(captions.tokens))

    towers, absent = [], []
    for key in keys:
        try:
            towers.append(make(key))
        except Exception as error:  # a failure is a line of the report, whatever it is
            reason = step_measure.reason_of(error)
            absent.append(step_measure.Absence(key, reason, key in step_measure.OURS))
    reference = Tower("reference", "reference", theirs, lambda c: theirs.encode_text(c.tokens))
    return [reference, *towers], absent


def compare(
    tower: Tower, case: Case, captions: Captions, cotangent: Tensor, truth: tuple
) -> dict[str, float]:
    """Relative errors of the features and of all gradients together, in the L2 norm."""
    features = tower.run(case, captions, cotangent)
    gradients = _gradients(tower.model)
    if gradients.keys() != truth[1].keys():
        raise NotMeasured(f"wrong: gradients of {gradients.keys() ^ truth[1].keys()}")
    return {
        "error_features": relative_error([(features, truth[0])]),
        "error_gradients": relative_error(
            [(gradients[name], value) for name, value in truth[1].items()]
        ),
    }


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and tower_of(name) == "text"
    }


def measure_case(
    case: Case,
    captions: Captions,
    towers: list[Tower],
    runs: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[harness.Row], list[step_measure.Absence]]:
    """Check all towers on these captions, then time those that pass."""
    reference, *contenders = towers
    exact = Case(case.model, case.batch, "fp32", case.device)
    cotangent = torch.randn(
        case.batch,
        reference.model.text_projection.shape[1],
        generator=torch.Generator(case.device).manual_seed(1),
        device=case.device,
    )
    with exact_products():
        features = reference.run(exact, captions, cotangent)
    truth = (features, _gradients(reference.model))
    limits = compare(reference, case, captions, cotangent, truth)
    passed, errors, absent = [], {}, []
    for tower in contenders:
        tick()
        try:
            found = compare(tower, case, captions, cotangent, truth)
            if worst := {k: v for k, v in found.items() if not v <= FLOOR + SLACK * limits[k]}:
                raise NotMeasured(f"wrong, so not timed: {worst}")
            passed.append(tower)
            errors[tower.name] = found
        except Exception as error:  # as above
            reason = step_measure.reason_of(error)
            absent.append(step_measure.Absence(tower.name, reason, tower.key in step_measure.OURS))
    if not passed:
        return [], absent
    rows = harness.measure_together(
        {tower.name: lambda t=tower: t.run(case, captions, cotangent) for tower in passed},
        check=lambda: errors.keys() == {tower.name for tower in passed},
        device=case.device,
        warmup=1,
        runs=runs,
        items=case.batch,
        ratios_to=[tower.name for tower in passed if tower.is_ours],
        after_run=tick,
        batch=case.batch,
        width=reference.model.ln_final.weight.shape[0],
        precision=case.precision,
        **captions.fields,
    )
    for row, tower in zip(rows, passed, strict=True):
        row.update(contender=tower.key, **errors[tower.name])
    return rows, absent


def table(rows: Sequence[harness.Row]) -> str:
    """One case's rows as text; x A is the time by that of our first form."""
    lines = [
        f"{'':34}{'captions/s':>12}{'ms':>9}{'p20':>9}{'p80':>9}{'x A':>7}{'MiB':>8}"
        f"{'features':>10}{'gradients':>10}"
    ]
    base = next((row["name"] for row in rows if row["contender"].startswith("clipfast")), None)
    for row in rows:
        name = f"A: {row['name']}" if row["name"] == base else row["name"]
        ratio = row.get(f"ratio_to_{base}")
        extra = row["peak_extra_bytes"]
        lines.append(
            f"{name:34}{row['items_per_s']:12,.1f}{row['median_ms']:9,.1f}{row['p20_ms']:9,.1f}"
            f"{row['p80_ms']:9,.1f}{'' if ratio is None else f'{ratio:.2f}':>7}"
            f"{'' if extra is None else f'{extra / 2**20:,.0f}':>8}"
            f"{row['error_features']:10.0e}{row['error_gradients']:10.0e}"
        )
    return "\n".join(lines)


def plot(rows: Sequence[harness.Row], path: Path) -> Path:
    """Draw a picture a machine, width and precision: bars of captions a second by source."""
    # The object interface: pyplot would pick a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(_setting(row) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = min(2, len(settings))
    figure = Figure(
        figsize=(1 + 5.2 * columns, 0.9 + 2.7 * -(-len(settings) // columns)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(-(-len(settings) // columns), columns, squeeze=False).flat
    for axes, setting in zip(grid, settings, strict=False):
        chosen = [row for row in rows if _setting(row) == setting]
        sources = list(dict.fromkeys((row["captions"], row["mean_length"]) for row in chosen))
        _draw(axes, chosen, names, sources)
        axes.set_title(setting, fontsize=9)
    for axes in list(grid)[len(settings) :]:
        axes.set_visible(False)
    handles = {}
    for axes in figure.axes:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("Text tower, forward and backward: captions a second", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _setting(row: harness.Row) -> str:
    return f"{device_name(row)}, width {row['width']}, batch {row['batch']}, {row['precision']}"


def _draw(axes: Any, rows: Sequence[harness.Row], names: list[str], sources: list) -> None:
    bar = 0.8 / len(names)
    for row in rows:
        group = sources.index((row["captions"], row["mean_length"]))
        place = names.index(row["name"])
        x = group + (place - (len(names) - 1) / 2) * bar
        own = row["items_per_s"]
        axes.bar(x, own, 0.95 * bar, color=f"C{place}", label=row["name"])
        base = next(
            (r for r in rows if r["contender"] == "openclip" and r["captions"] == row["captions"]),
            row,
        )
        told = f"{own:,.3g}" if base is row else f"{own:,.3g}\n{own / base['items_per_s']:.2f}x"
        axes.text(x, own, told, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(
        range(len(sources)),
        [f"{source} captions, {mean:.3g} tokens" for source, mean in sources],
        fontsize=8,
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.2)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="without options: " + "; ".join(f"{k}: {v}" for k, v in DEFAULTS.items()),
    )
    parser.add_argument("--widths", type=int, nargs="+", choices=MODELS)
    parser.add_argument("--batch", type=int, help="captions")
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    parser.add_argument("--captions", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--runs", type=int, help="timed runs of each contender")
    parser.add_argument("--device", choices=DEFAULTS, help="CUDA where there is one, else the CPU")
    parser.add_argument(
        "--save", action="store_true", help="write to results/, beside the rows of other cases"
    )
    parser.add_argument("--json", type=Path, help="file for the rows, one a line")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    return parser


def run_cases(
    options: argparse.Namespace,
) -> tuple[list[harness.Row], list[step_measure.Absence]]:
    """Measure every width, precision and source of captions; print each table as it is done."""
    rows, absent = [], []
    device = torch.device(options.device)
    total = len(options.widths) * len(options.precisions) * len(options.captions)
    runs_of_case = len(options.contenders) * (options.runs + 2)
    with tqdm(total=total * runs_of_case, unit=" runs", leave=False) as bar:
        for width in options.widths:
            for precision in options.precisions:
                overrides = tuple({**overrides_of(width), "text_layers": options.layers}.items())
                case = Case(MODELS[width], options.batch, precision, device, overrides=overrides)
                towers, missing = make_towers(case, options.contenders)
                for source in options.captions:
                    captions = make_captions(source, options.batch, device=device)
                    bar.set_description(f"width {width}, {precision}, {source}")
                    new, wrong = measure_case(case, captions, towers, options.runs, bar.update)
                    told = captions.fields
                    bar.write(
                        f"\nwidth {width}, {options.layers} layers, batch {options.batch}, "
                        f"{precision}, {device.type}; {source} captions of "
                        f"{told['mean_length']:.3g} tokens, the longest {told['max_length']}"
                    )
                    bar.write(table(new))
                    for absence in [*missing, *wrong]:
                        bar.write(f"{absence.name}: {absence.reason}")
                    rows += new
                    absent += [*missing, *wrong]
                del towers
                step_measure.forget()
    return rows, absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    is_default = vars(arguments) == vars(parser.parse_args([]))
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    unset = {"json": None, "plot": None}
    options = argparse.Namespace(**{**unset, **DEFAULTS[device], **given, "device": device})
    try:
        peers.import_open_clip()
    except ImportError as error:
        raise SystemExit(str(error)) from None
    peers.use_open_clips_backends()
    rows, absent = run_cases(options)
    if rows:
        step_report.save(SUBJECT, rows, plot, options.json, options.plot, is_default, options.save)
    if failed := [absence.name for absence in absent if absence.is_ours]:
        raise SystemExit(f"clipfast has no figure for: {', '.join(failed)}")


if __name__ == "__main__":
    main()
