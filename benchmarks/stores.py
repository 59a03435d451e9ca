"""Samples per second from a store, against local files and against webdataset's pipe.

    apt-get install nginx-light libnginx-mod-http-lua
    python benchmarks/stores.py                         both protocols at 0, 20 and 100 ms
    python benchmarks/stores.py --latencies 20 --what read --runs 3
    python benchmarks/stores.py --root clip             where openclipart-png is unpacked

nginx serves the shards on loopback, over HTTP and as S3 does, and lets each request wait. It has
the last core, and the loaders have the first: they read an epoch as the decoder takes it, or
decoded. clipfast reads files, ranges of a store, and through a cache that is empty or full at the
start. webdataset reads files, and ``pipe:curl`` as OpenCLIP does, with OpenCLIP's shuffling.

In each timed epoch every sample must come once, with the bytes of the file, and clipfast's in the
order of the local files to the bit; else there is no row. "broken" is a place that cuts an answer
each 10 MB, and counts the samples that are lost. clipfast may lose none there either.

Rows go to ``benchmarks/results/stores.jsonl`` under the default options or with --save.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.parts.common.contest import NotMeasured
from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.common.text import align
from benchmarks.parts.data.pictures import SHARDS, Pictures, is_here, make
from benchmarks.parts.stores.loaders import Task, everything
from benchmarks.parts.stores.measure import Contender, Epoch, seen_once
from benchmarks.parts.stores.servers import BREAKS, BUCKET, KEYS, PROTOCOLS, Servers, serve
from clipfast.storage import StoreOptions

SUBJECT = "stores"
DEFAULTS = {"cpu": {"runs": 3, "count": 8000}}
_SIZE = (320, 256)
_WHAT = ("read", "decoded", "broken")


@dataclass(frozen=True)
class Form:
    """One way to read.

    Attributes:
        loader: Of LOADERS.
        title: For tables.
        place: "files", "store", "cold" or "warm": where shards are at the start.
    """

    loader: str
    title: str
    place: str


FORMS = (
    Form("clipfast", "clipfast, files", "files"),
    Form("clipfast", "clipfast, ranges", "store"),
    Form("clipfast", "clipfast, empty cache", "cold"),
    Form("clipfast", "clipfast, full cache", "warm"),
    Form("webdataset", "webdataset {version}, files", "files"),
    Form("webdataset", "webdataset {version}, pipe", "store"),
)


# Where answers are cut, the first says what is right.
_BROKEN = (FORMS[0], FORMS[1], FORMS[-1])


@dataclass(frozen=True)
class Place:
    """Where shards are.

    Attributes:
        protocol: "http" or "s3".
        latency_ms: By which an answer is later; BREAKS: some are cut.
        address: Of the server.
        folder: Of the local files.
        cache: For copies.
        workers: Processes of webdataset.
        in_flight: Requests of clipfast under way at a time.
    """

    protocol: str
    latency_ms: int
    address: str
    folder: Path
    cache: Path
    workers: int
    in_flight: int

    def task(self, form: Form, decoded: bool) -> Task:
        """What a form has to read."""
        names = [f"{number:05d}.tar" for number in range(SHARDS)]
        if form.place == "files":
            files = tuple(str(self.folder / name) for name in names)
            return Task(files, decoded, workers=self.workers)
        is_s3 = self.protocol == "s3"
        if form.loader == "webdataset":
            sign = ""
            if is_s3:
                sign = f"--aws-sigv4 aws:amz:{KEYS['AWS_REGION']}:s3 --user me:secret "
            root = f"{self.address}/{BUCKET}" if is_s3 else self.address
            pipes = tuple(f"pipe:curl -s -f {sign}{root}/{name}" for name in names)
            return Task(pipes, decoded, workers=self.workers)
        root = f"s3://{BUCKET}" if is_s3 else self.address
        far = tuple(f"{root}/{name}" for name in names)
        cache = "" if form.place == "store" else str(self.cache)
        return Task(
            far,
            decoded,
            self.address if is_s3 else "",
            cache,
            form.place == "warm",
            self.in_flight,
        )


class Case:
    """Forms in turns, at one place.

    Args:
        servers: That run.
        place: Where.
        what: Of _WHAT.
        contenders: Processes, by the names of loaders.
        everything: Digests of all samples.
    """

    def __init__(
        self,
        servers: Servers,
        place: Place,
        what: str,
        contenders: dict[str, Contender],
        everything: Sequence[bytes],
    ) -> None:
        self._servers, self._place, self._what = servers, place, what
        self._contenders, self._everything = contenders, everything
        self._expected: Epoch | None = None

    def measure(self, runs: int, rate: float) -> list[Row]:
        """A row per form.

        Args:
            runs: Epochs of each.
            rate: Bytes per second of loopback.
        """
        forms = _BROKEN if self._what == "broken" else FORMS
        epochs: dict[Form, list[Epoch]] = {form: [] for form in forms}
        traffic: dict[Form, list[tuple[float, ...]]] = {form: [] for form in forms}
        for _ in range(runs):
            for form in forms:
                if form.place == "cold":
                    shutil.rmtree(self._place.cache, ignore_errors=True)
                task = self._place.task(form, self._what == "decoded")
                before = self._seen()
                epoch = self._contenders[form.loader].run(task)
                spent = [after - then for after, then in zip(self._seen(), before, strict=True)]
                self._check(form, epoch)
                epochs[form].append(epoch)
                traffic[form].append(tuple(spent))
        return [self._row(form, epochs[form], traffic[form], rate, epochs) for form in forms]

    def _seen(self) -> tuple[float, ...]:
        """Requests, bytes, seconds of the server's core, answers that were cut."""
        breaks, traffic = self._servers.breaks(), self._servers.traffic()
        return traffic.requests, traffic.bytes, self._servers.cpu_seconds(), breaks

    def _check(self, form: Form, epoch: Epoch) -> None:
        if self._expected is None:
            # The first is that of files.
            self._expected = epoch
        wanted = self._expected
        if form.loader == "clipfast":
            if (epoch.samples, epoch.crops) != (wanted.samples, wanted.crops):
                raise CheckFailed(f"{form.title}: other samples, order or pixels than of files")
            return
        known = self._known(wanted)
        if self._what == "broken":
            # What is lost is counted.
            came = set(epoch.samples)
            known = [each for each in known if each in came]
        if wrong := seen_once(epoch.samples, known):
            raise CheckFailed(f"{form.title}: {wrong}")

    def _known(self, ours: Epoch) -> Sequence[bytes]:
        """All samples: clipfast leaves those out that fill no last batch."""
        if not set(ours.samples) <= set(self._everything):
            raise CheckFailed("clipfast, files: a sample that is in no file")
        return self._everything

    def _lost(self, form: Form, epoch: Epoch) -> int:
        if form.loader == "clipfast":
            assert self._expected is not None
            return len(set(self._expected.samples) - set(epoch.samples))
        return len(set(self._everything) - set(epoch.samples))

    def _row(
        self,
        form: Form,
        mine: Sequence[Epoch],
        traffic: Sequence[tuple[float, ...]],
        rate: float,
        epochs: dict[Form, list[Epoch]],
    ) -> Row:
        count = len(mine[0].samples)
        requests, sent = (statistics.median(each[i] for each in traffic) for i in (0, 1))
        in_flight = self._place.workers if form.loader == "webdataset" else self._place.in_flight
        seconds = sorted(each.seconds for each in mine)
        latency_ms = max(0, self._place.latency_ms)
        floor = max(sent / rate, latency_ms / 1e3 * requests / in_flight)
        times = torch.tensor(seconds, dtype=torch.float64)
        low, high = times.quantile(torch.tensor([0.2, 0.8], dtype=torch.float64)).tolist()
        row: Row = {
            "name": form.title.format(version=importlib.metadata.version("webdataset")),
            "form": form.title.partition(", ")[2],
            "loader": form.loader,
            "protocol": self._place.protocol,
            "latency_ms": latency_ms,
            "what": self._what,
            "checked": True,
            "device": "cpu",
            "runs": len(mine),
            "samples": count,
            "median_ms": 1e3 * statistics.median(seconds),
            "p20_ms": 1e3 * low,
            "p80_ms": 1e3 * high,
            "items_per_s": statistics.median(len(e.samples) / e.seconds for e in mine),
            "cpu_us_per_sample": 1e6 * statistics.median(e.cpu_seconds / count for e in mine),
            "server_cpu_s": statistics.median(each[2] for each in traffic),
            "in_flight": in_flight,
            "workers": self._place.workers if form.loader == "webdataset" else 0,
            "case": f"{self._place.protocol}, {latency_ms} ms, {self._what}",
        }
        if self._what == "broken":
            row["breaks"] = statistics.median(each[3] for each in traffic)
            row["lost"] = statistics.median(self._lost(form, epoch) for epoch in mine)
        # Of a full cache they are those of its filling, which is not timed.
        if form.place != "warm":
            row |= {"requests": requests, "bytes": sent}
            if floor:
                row["floor_ms"] = 1e3 * floor
        for other, theirs in epochs.items():
            if other != form:
                told = other.title.format(version=importlib.metadata.version("webdataset"))
                row[f"ratio_to_{told}"] = statistics.median(
                    (b_count / b.seconds) / (len(a.samples) / a.seconds)
                    for a, b in zip(mine, theirs, strict=True)
                    for b_count in (len(b.samples),)
                )
        return row


def loopback_rate(servers: Servers, latency_ms: int) -> float:
    """Bytes per second of all shards, read by curl one after the other."""
    root = servers.address("http", latency_ms)
    urls = [f"{root}/{number:05d}.tar" for number in range(SHARDS)]
    before = servers.traffic().bytes
    start = time.perf_counter()
    subprocess.run(["curl", "-s", "-f", *urls], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start - latency_ms / 1e3 * SHARDS
    return (servers.traffic().bytes - before) / seconds


def table(rows: Sequence[Row]) -> str:
    """One case as text."""
    head = ["", "samples/s", "us of a core", "requests", "MB", "x floor", "server's core"]
    lines = [[*head, "lost"] if "lost" in rows[0] else head]
    for row in rows:
        floor = row.get("floor_ms")
        lines.append(
            [
                row["name"],
                f"{row['items_per_s']:,.0f}",
                f"{row['cpu_us_per_sample']:,.0f}",
                f"{row.get('requests', 0):,.0f}",
                f"{row.get('bytes', 0) / 1e6:,.0f}",
                f"{row['median_ms'] / floor:.1f}" if floor else "",
                f"{row['server_cpu_s'] / row['median_ms'] * 1e3:.0%}",
                *([f"{row['lost']:,.0f} by {row['breaks']:.0f} breaks"] if "lost" in row else []),
            ]
        )
    return align(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--latencies", nargs="+", type=int, default=[0, 20, 100], metavar="MS")
    parser.add_argument("--what", nargs="+", choices=_WHAT, default=list(_WHAT))
    parser.add_argument("--count", type=int, help="samples in 8 shards")
    parser.add_argument("--workers", type=int, default=1, help="processes of webdataset")
    parser.add_argument(
        "--in-flight",
        type=int,
        default=StoreOptions().in_flight,
        help="requests of clipfast under way at a time",
    )
    parser.add_argument("--folder", type=Path, help="for made shards; a temporary one if left out")
    parser.add_argument("--root", type=Path, default=Path("/"), help="of openclipart-png's files")
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the rows."""
    options = parse(build_parser(), argv, DEFAULTS)
    source = "openclipart" if is_here("openclipart", options.root) else "sample"
    cores = sorted(os.sched_getaffinity(0))
    rows = RowFile(SUBJECT, options, lambda row: row["case"])
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        work.chmod(0o755)
        (work / "nginx").mkdir()
        pictures = Pictures(source, _SIZE, options.count)
        folder = Path(make(pictures, options.folder or work, options.root)[0]).parent
        try:
            _run(options, rows, folder, work, cores)
        except NotMeasured as error:
            print(f"not measured: {error}")
            return
    rows.finish()


def _run(
    options: argparse.Namespace, rows: RowFile, folder: Path, work: Path, cores: Sequence[int]
) -> None:
    with serve(folder, work / "nginx", options.latencies, {cores[-1]}) as servers:
        rate = loopback_rate(servers, options.latencies[0])
        print(f"{folder.name}: {options.count:,} samples; loopback {rate / 1e6:,.0f} MB/s")
        with (
            closing(Contender("clipfast", {cores[0]})) as ours,
            closing(Contender("webdataset", {cores[0]})) as theirs,
        ):
            known = everything(folder)
            contenders = {"clipfast": ours, "webdataset": theirs}
            for what in options.what:
                for protocol in options.protocols:
                    latencies = [BREAKS] if what == "broken" else options.latencies
                    for latency_ms in latencies:
                        address = servers.address(protocol, latency_ms)
                        place = Place(
                            protocol,
                            latency_ms,
                            address,
                            folder,
                            work / "cache",
                            options.workers,
                            options.in_flight,
                        )
                        case = Case(servers, place, what, contenders, known)
                        new = case.measure(options.runs, rate)
                        rows.add(new)
                        print(f"\n{new[0]['case']}\n{table(new)}", flush=True)


if __name__ == "__main__":
    main()
