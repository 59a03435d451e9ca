"""Runs over several hosts, each with a network of its own, joined by a wire that delays and loses.

The hosts share one file system and one machine's cores; see `wire` for what else they have of their
own. Their weights must be those of as many ranks on one host, bit for bit: gloo adds in the same
order.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.campaigns.namespaces import Hosts
from tests.campaigns.program import Setting, main
from tests.campaigns.subject import RECIPE, Started, free_port, wait_until
from tests.campaigns.table import Table
from tests.campaigns.traces import difference, last_step
from tests.campaigns.wire import Wire

_PORT = 29500
# On a machine with fewer cores than ranks, and other work.
_SECONDS = 240
_LONG_TOWER = Path(__file__).with_name("hosts_recipe.py")
_PROFILED = 6
_GATHER = "all_gather in gather of texts"
_PATIENCE = 20
# For processes to end, on a machine with fewer cores than ranks.
_SLACK = 10
# What ssh would do: go to the host that is named.
_GO = """#!{python}
import os, sys
hosts = {hosts!r}
options = {{"-o", "-p", "-f", "-w"}}
words = sys.argv[1:]
"""
_SSH = (
    _GO
    + """
while words[0].startswith("-"):
    words = words[2 if words[0] in options else 1:]
os.execvp("nsenter", [*hosts[words[0]], "sh", "-c", " ".join(words[1:])])
"""
)
# Of pdsh what DeepSpeed uses: the same command on several hosts, %n for the number of each.
_PDSH = (
    _GO
    + """
import subprocess
while words[0].startswith("-"):
    if words[0] == "-w":
        names = words[1].split(",")
    words = words[2 if words[0] in options else 1:]
lines = [" ".join(words).replace("%n", str(number)) for number in range(len(names))]
started = [
    subprocess.Popen([*hosts[name], "sh", "-c", line])
    for name, line in zip(names, lines, strict=True)
]
sys.exit(max([abs(each.wait()) for each in started]))
"""
)


class OnHosts:
    """A run with one rank on each host.

    Args:
        setting: of the campaign.
        hosts: where it runs.
        folder: of its runs.
        options: of the recipe.
        recipe: another one than the cheapest.
    """

    def __init__(
        self, setting: Setting, hosts: Hosts, folder: Path, *options: str, recipe: Path = RECIPE
    ) -> None:
        self._setting, self._hosts, self.folder = setting, hosts, folder
        self._script = [str(recipe), "--logging.dir", str(folder), *options]
        folder.mkdir(parents=True, exist_ok=True)

    def directly(self, *variables: str) -> list[Started]:
        """One Python on each host, which is told what a launcher would tell it."""
        count = self._hosts.wire.hosts
        lines = _ranks(self._setting, count, 1, "h1", _PORT)
        return [
            self._start(["env", *variables, *line, *self._script], self._hosts.enter(host))
            for host, line in enumerate(lines, 1)
        ]

    def by_torchrun(self) -> list[Started]:
        """A torchrun on each host, which agree on their numbers through a store on h1."""
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"h1:{_PORT}"]
        return self._by("torch.distributed.run", lambda _: meeting)

    def by_numbers(self) -> list[Started]:
        """As recipes/launch does it: clipfast's torchrun on each host, which is told its number."""
        meeting = ["--master-addr", "h1", "--master-port", str(_PORT), "--node-rank"]
        return self._by("clipfast.torchrun", lambda host: [*meeting, str(host - 1)])

    def _by(self, module: str, meeting: Callable[[int], list[str]]) -> list[Started]:
        count = self._hosts.wire.hosts
        python = str(self._setting.subject.python)
        line = [python, "-m", module, "--nnodes", str(count), "--nproc-per-node", "1"]
        return [
            self._start([*line, *meeting(host), *self._script], self._hosts.enter(host))
            for host in range(1, count + 1)
        ]

    def by_hostfile(self) -> list[Started]:
        """DeepSpeed's launcher on h1, which goes to the other hosts by itself."""
        tools = self.folder / "tools"
        tools.mkdir()
        names = [f"h{host}" for host in range(1, self._hosts.wire.hosts + 1)]
        enter = {name: self._hosts.enter(host) for host, name in enumerate(names, 1)}
        for name, text in (("ssh", _SSH), ("pdsh", _PDSH)):
            (tools / name).write_text(text.format(python=sys.executable, hosts=enter))
            (tools / name).chmod(0o755)
        hostfile = self.folder / "hostfile"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in names))
        python = str(self._setting.subject.python)
        path = f"PATH={tools}{os.pathsep}{self._setting.subject.environment()['PATH']}"
        launcher = ["-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        line = ["env", path, python, *launcher, "--master_addr", "h1", *self._script]
        return [self._start(line)]

    def _start(self, line: Sequence[str], prefix: Sequence[str] = ()) -> Started:
        return self._setting.subject.start(self.folder, command=line, prefix=prefix)


def _ranks(setting: Setting, count: int, local: int, address: str, port: int) -> list[list[str]]:
    """The beginning of each rank's command, where no launcher starts them."""
    lines = []
    for rank in range(count):
        numbers = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": count}
        where = {"LOCAL_WORLD_SIZE": local, "MASTER_ADDR": address, "MASTER_PORT": port}
        variables = [f"{name}={value}" for name, value in {**numbers, **where}.items()]
        lines.append(["env", *variables, str(setting.subject.python)])
    return lines


@contextmanager
def ended(started: Sequence[Started]) -> Iterator[None]:
    """Whatever happens in the block, nothing of a run is left after it."""
    try:
        yield
    finally:
        for each in started:
            each.kill()


def _on_one_host(setting: Setting, folder: Path, count: int, *options: str) -> Path:
    """As many ranks on this machine; their run."""
    folder.mkdir()
    script = [str(RECIPE), "--logging.dir", str(folder), *options]
    lines = _ranks(setting, count, count, "127.0.0.1", free_port())
    started = [setting.subject.start(folder, command=[*line, *script]) for line in lines]
    with ended(started):
        ends = [each.wait(_SECONDS) for each in started]
    assert not any(end.status for end in ends), [end.output for end in ends]
    return folder / "run"


def _as_one_host(setting: Setting, folder: Path, wire: Wire, steps: int, by: str) -> str:
    """Train on the hosts and on one; how they differ, or nothing."""
    options = ["--max-steps", str(steps), "--checkpoint.every-steps", "0"]
    with Hosts(wire) as hosts:
        started = getattr(OnHosts(setting, hosts, folder / "hosts", *options), by)()
        with ended(started):
            ends = [each.wait(_SECONDS) for each in started]
    if any(end.status for end in ends):
        said = " / ".join(end.output[-400:] for end in ends if end.status)
        return f"statuses {[end.status for end in ends]}: {said}"
    one = _on_one_host(setting, folder / "one", wire.hosts, *options)
    return difference(folder / "hosts" / "run", one)


def _train(wire: Wire, steps: int, by: str) -> Callable[[Setting, Path], str]:
    return lambda setting, folder: _as_one_host(setting, folder, wire, steps, by)


def _cut(victim: int, rank_0_tells: bool) -> Callable[[Setting, Path], str]:
    """Cut a host off in mid-run: the others end in time and name it, and nothing is left."""

    def case(setting: Setting, folder: Path) -> str:
        patience = ["--watchdog-seconds", str(_PATIENCE)]
        options = ["--max-steps", "100000", "--checkpoint.every-steps", "0", *patience]
        with Hosts(Wire(4, delay_ms=5)) as hosts:
            run = OnHosts(setting, hosts, folder, *options)
            started = run.by_numbers()
            with ended(started):
                if not wait_until(lambda: last_step(folder / "run") >= 3, _SECONDS):
                    return f"no step in {_SECONDS} s: {started[0].output()[-400:]}"
                hosts.cut(victim)
                moment = time.monotonic()
                late = [n for n, each in enumerate(started, 1) if not each.gone(_left(moment))]
        if late:
            return f"alive {_PATIENCE + _SLACK} s after the cut: {late}"
        statuses = [each.process.returncode for each in started]
        others = [each.output() for n, each in enumerate(started, 1) if n != victim]
        if 0 in statuses:
            return f"statuses {statuses}"
        name = f"rank {victim - 1} on h{victim}"
        tellers = others[:1] if rank_0_tells else others
        silent = [said[-400:] for said in tellers if name not in said]
        return f"{name} is not named in: {silent}" if silent else ""

    return case


def _left(moment: float) -> float:
    return max(0.1, moment + _PATIENCE + _SLACK - time.monotonic())


def _hidden(setting: Setting, folder: Path) -> str:
    """The gather of texts behind the image tower, and waited for at once: the same weights, and
    less of it exposed. The run's own profile tells."""
    steps = ["--max-steps", str(_PROFILED + 3), "--profile", str(_PROFILED)]
    options = [*steps, "--checkpoint.every-steps", "0"]
    gathers, seconds = {}, {}
    with Hosts(Wire(2, delay_ms=50)) as hosts:
        for way in ("hidden", "awaited"):
            run = OnHosts(setting, hosts, folder / way, *options, recipe=_LONG_TOWER)
            where = f"PYTHONPATH={setting.subject.repository}"
            started = run.directly(f"CLIPFAST_CPU_GATHER={way}", where)
            with ended(started):
                ends = [each.wait(_SECONDS) for each in started]
            if any(end.status for end in ends):
                return f"{way}: {[end.output[-400:] for end in ends]}"
            found = json.loads((run.folder / "run/profile/summary.json").read_text())
            seconds[way] = found["step"]
            (gathers[way],) = [c for c in found["collectives"] if c["name"] == _GATHER]
    shares = {way: each["hidden"] / _whole(each) for way, each in gathers.items()}
    told = (
        f"{shares['hidden']:.0%} of {_whole(gathers['hidden']):.3f} s of gathers behind the image "
        f"tower, {seconds['hidden']:.3f} s a step; awaited: {shares['awaited']:.0%} of "
        f"{_whole(gathers['awaited']):.3f} s, {seconds['awaited']:.3f} s a step"
    )
    if differing := difference(folder / "hidden/run", folder / "awaited/run"):
        return differing
    print(told, flush=True)
    # Not by the step's time: of its many messages one is hidden, and the hosts share their cores.
    return "" if shares["hidden"] > shares["awaited"] + 0.5 else told


def _whole(collective: Mapping[str, float]) -> float:
    return collective["hidden"] + collective["exposed"]


# The first one is the short form.
CASES: dict[str, Callable[[Setting, Path], str]] = {
    "2 hosts whose own name leads to 127.0.1.1": _train(
        Wire(2, delay_ms=1, own_name_is_loopback=True), 3, "directly"
    ),
    "2 hosts by DeepSpeed's hostfile, 5 ms": _train(Wire(2, delay_ms=5), 3, "by_hostfile"),
    "4 hosts by torchrun, 20 ms, 1% lost": _train(
        Wire(4, delay_ms=20, loss_percent=1), 8, "by_torchrun"
    ),
    "2 hosts, 50 ms, the gather of texts is hidden": _hidden,
    "4 hosts, one is cut off": _cut(3, rank_0_tells=True),
    "4 hosts, that of rank 0 is cut off": _cut(1, rank_0_tells=False),
}


def campaign(setting: Setting) -> Table:
    """The first ``setting.count`` cases."""
    table = Table("hosts")
    for number, (name, case) in enumerate(list(CASES.items())[: setting.count]):
        folder = setting.folder / str(number)
        wrong = case(setting, folder)
        table.add(name, str(folder), not wrong, wrong or "withstood")
    return table


if __name__ == "__main__":
    main({"hosts": (campaign, len(CASES))}, __doc__)
