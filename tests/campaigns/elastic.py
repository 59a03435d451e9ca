"""Every number of ranks and stage of ZeRO to every other, in every format: what goes on, and how.

A small model trains on W ranks at a stage, is saved, and trains on: the uninterrupted run. Engines
of W' ranks at another stage load what was saved. They must hold the same bits of every tensor, by
name, and go on as the uninterrupted run: with its bits where gradients sum to the same bits, else
up to rounding. The same is tried with DeepSpeed's own checkpoints, as earlier versions wrote them,
of one and two ranks.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table
from tests.engine.elastic_cases import (
    FORMATS,
    RANKS,
    STAGES,
    Format,
    assembled,
    build,
    build_as_before,
    differing,
    discard,
    distance,
    load,
    load_as_before,
    save,
    train,
)
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks

NUMBERS, LATER = range(2), range(2, 4)
COUNT = len(FORMATS) * (len(RANKS) * len(STAGES)) ** 2
_BEFORE = (1, 2)
# Of the way that the steps after the checkpoint went.
_ROUNDING = 0.05


class Found(NamedTuple):
    """One resume.

    Attributes:
        kind: of weights and statistics, as text.
        saved: ranks and stage that saved; ranks below 0: as earlier versions did.
        resumed: those that went on.
        loaded: names of what was loaded otherwise.
        later: names of what differs from the uninterrupted run after more steps.
        distance: from it, of the way that these steps went.
    """

    kind: str
    saved: tuple[int, int]
    resumed: tuple[int, int]
    loaded: list[str]
    later: list[str]
    distance: float

    @property
    def must_be_equal(self) -> bool:
        """Whether gradients sum to the same bits: means of 1, 2 and 4 equal ones are exact."""
        (ranks, stage), (other, other_stage) = self.saved, self.resumed
        if (ranks, stage) == (other, other_stage):
            return True
        # A remainder rounds ties away from zero, and micro-batches add in bf16 at some stages.
        same_sums = "remainder" not in self.kind and "micro" not in self.kind
        return same_sums and ranks != 3 and other != 3

    @property
    def outcome(self) -> str:
        """What was lost; empty where nothing was."""
        if self.loaded:
            return f"{len(self.loaded)} tensors loaded otherwise, such as {self.loaded[0]}"
        if self.saved[0] < 0:
            return ""
        if self.later and self.must_be_equal:
            return f"{len(self.later)} tensors went on otherwise, such as {self.later[0]}"
        return f"went {self.distance:.1%} another way" if self.distance > _ROUNDING else ""


def campaign(setting: Setting) -> Table:
    """Try all, or those of as many formats as ``setting.count`` resumes take; one format on up to
    two ranks where that is too many."""
    each = (len(RANKS) * len(STAGES)) ** 2
    everyone = RANKS if setting.count >= each else RANKS[:2]
    kinds = list(FORMATS)
    if setting.count < COUNT:
        setting.random.shuffle(kinds)
        kinds = kinds[: max(1, setting.count // each)]
    root = setting.folder / "checkpoints"
    for ranks in everyone:
        run_ranks(ranks, _save, free_port(), str(root), kinds)
    found = []
    for ranks in everyone:
        rows = run_ranks(ranks, _resume, free_port(), str(root), kinds, everyone)[0]
        found += [Found(*row) for row in rows]
    shutil.rmtree(root)
    table = Table("elastic")
    for one in found:
        (ranks, stage), (other, other_stage) = one.saved, one.resumed
        case = "checkpoints of earlier versions" if ranks < 0 else f"{ranks} -> {other} rank(s)"
        attack = f"{one.kind}, {abs(ranks)} rank(s), stage {stage} -> {other_stage}"
        table.add(case, attack, not one.outcome, one.outcome or "nothing was lost")
    print(matrix(found, everyone))
    return table


def matrix(found: list[Found], everyone: tuple[int, ...] = RANKS) -> str:
    """Rows: who saved. Columns: who went on. "16=" is 16 formats that went on with the same bits,
    "2~" two more up to rounding, "1!" one that lost something."""
    layouts = [(ranks, stage) for ranks in everyone for stage in STAGES]
    head = [f"{ranks}r s{stage}" for ranks, stage in layouts]
    lines = ["| saved \\ resumed | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for saved in [*layouts, *((-ranks, stage) for ranks in _BEFORE for stage in STAGES)]:
        cells = []
        for resumed in layouts:
            of = [one for one in found if (one.saved, one.resumed) == (saved, resumed)]
            lost = sum(bool(one.outcome) for one in of)
            same = sum(not one.later and not one.outcome for one in of)
            counts = ((same, "="), (len(of) - lost - same, "~"), (lost, "!"))
            cells.append(" ".join(f"{count}{sign}" for count, sign in counts if count) or "-")
        ranks, stage = saved
        name = f"{ranks}r s{stage}" if ranks > 0 else f"before, {-ranks}r s{stage}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _folder(root: str, kind: Format, ranks: int, stage: int) -> Path:
    return Path(root, f"{FORMATS.index(kind)}-{ranks}-{stage}")


def _save(port: int, root: str, kinds: list[Format]) -> None:
    process = start_rank(port)
    ranks = process.world_size
    # Before DeepSpeed keeps to the grid of today, which is for good at stage 3.
    for kind in kinds if ranks in _BEFORE else ():
        for stage in STAGES:
            engine = build_as_before(kind, stage, process)
            train(engine, NUMBERS)
            folder = _folder(root, kind, -ranks, stage)
            engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
            discard(engine)
    for kind in kinds:
        for stage in STAGES:
            engine = build(kind, stage, process)
            train(engine, NUMBERS)
            folder = _folder(root, kind, ranks, stage)
            save(engine, process, folder)
            train(engine, LATER)
            save(engine, process, folder.with_name(f"{folder.name}-later"))
            discard(engine)


def _resume(
    port: int, root: str, kinds: list[Format], everyone: tuple[int, ...]
) -> list[tuple[Any, ...]]:
    process = start_rank(port)
    found = []
    for kind in kinds:
        for stage in STAGES:
            engine = build(kind, stage, process)
            own = Path(root, "resumed")
            for saved in ((ranks, s) for ranks in everyone for s in STAGES):
                folder = _folder(root, kind, *saved)
                load(engine, process, folder)
                save(engine, process, own)
                train(engine, LATER)
                save(engine, process, own.with_name("resumed-later"))
                if process.is_main:
                    resumed = (process.world_size, stage)
                    found.append((str(kind), saved, resumed, *_judged(folder, own)))
                _forget(process, own, own.with_name("resumed-later"))
            for row in _as_before(engine, process, root, kind):
                found.append((str(kind), row[0], (process.world_size, stage), *row[1:]))
            discard(engine)
    return found


def _judged(folder: Path, own: Path) -> tuple[list[str], list[str], float]:
    """What was loaded otherwise, what went on otherwise, and how far."""
    whole, later = assembled(folder), assembled(folder.with_name(f"{folder.name}-later"))
    on = assembled(own.with_name("resumed-later"))
    loaded = differing(assembled(own), whole)
    return loaded, differing(on, later), distance(on, later) / distance(later, whole)


def _as_before(
    engine: Any, process: Any, root: str, kind: Format
) -> Iterator[tuple[tuple[int, int], list[str], list[str], float]]:
    """What DeepSpeed's own checkpoints give: what lies in one of today's of the same run."""
    own = Path(root, "resumed")
    for ranks in _BEFORE:
        for stage in STAGES:
            load_as_before(engine, _folder(root, kind, -ranks, stage))
            save(engine, process, own)
            if process.is_main:
                # The random bits were others then: in fp32 nothing is rounded with them.
                whole = assembled(_folder(root, kind, ranks, stage))
                exact = "fp32 statistics" in str(kind) and "stochastic" not in str(kind)
                names = [n for n in differing(assembled(own), whole) if exact]
                yield (-ranks, stage), names, ["other random bits"], 0.0
            _forget(process, own)


def _forget(process: Any, *folders: Path) -> None:
    if process.is_main:
        for folder in folders:
            shutil.rmtree(folder)
    dist.barrier()


if __name__ == "__main__":
    main({"elastic": (campaign, COUNT)}, __doc__)
