"""Where gloo listens between nodes; with real hosts in tests/campaigns/hosts.py."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipfast.engine import interface
from tests.campaigns.namespaces import Hosts
from tests.campaigns.wire import Port, Switch, Wire
from tests.engine.launching import REPOSITORY

CHOOSE = """
import os, sys
from clipfast.engine import interface
towards = interface.address_towards(sys.argv[1], 1)
interface.choose(towards, sys.argv[2])
print(towards, os.environ.get(interface.VARIABLE))
"""


def test_interface_a_way_to_this_machine_is_a_loopback_and_no_way_is_one_too():
    assert interface.address_towards("localhost", 1).startswith(("127.", "::1"))
    assert interface.address_towards("no.such.host.invalid", 1) == "127.0.0.1"


def test_interface_is_found_by_its_address():
    assert interface.interface_of("127.0.0.1") == dict(socket.if_nameindex())[1]
    assert interface.interface_of("192.0.2.1") is None


@pytest.mark.parametrize("resolved", ["127.0.1.1", "192.0.2.7", None])
def test_interface_is_chosen_only_where_the_own_name_leads_nowhere(monkeypatch, resolved):
    def lookup(*_, **__):
        if resolved is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]

    monkeypatch.delenv(interface.VARIABLE, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(interface, "interface_of", lambda address: f"of {address}")
    interface.choose("192.0.2.7", "192.0.2.8")
    assert os.environ.pop(interface.VARIABLE, None) == (
        None if resolved == "192.0.2.7" else "of 192.0.2.7"
    )
    monkeypatch.setenv(interface.VARIABLE, "given")
    interface.choose("192.0.2.7", "192.0.2.8")
    assert os.environ[interface.VARIABLE] == "given"


def test_interface_of_ranks_that_are_all_here_is_left_to_gloo(monkeypatch):
    monkeypatch.delenv(interface.VARIABLE, raising=False)
    monkeypatch.setattr(interface, "_own_name_leads_out", lambda: False)
    interface.choose("127.0.0.1", "127.0.0.1")
    assert interface.VARIABLE not in os.environ


@pytest.mark.needs("hosts")
def test_interface_of_the_first_and_of_another_host():
    """MASTER_ADDR is h1, which on h1 itself is 127.0.1.1."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop(interface.VARIABLE, None)
    with Hosts(Wire(2, own_name_is_loopback=True)) as hosts:
        said = {
            host: subprocess.run(
                [*hosts.enter(host), sys.executable, "-c", CHOOSE, "h1", "10.77.0.2"],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            for host in (1, 2)
        }
        hosts.cut(2)
        script = "import socket; socket.create_connection(('h1', 1), 1.0)"
        with pytest.raises(subprocess.CalledProcessError):
            hosts.run(2, [sys.executable, "-c", script])
    assert said == {1: ["127.0.0.1", "net0"], 2: ["10.77.0.2", "net0"]}


def packet(target: int, size: int = 100) -> bytes:
    """For the host of a number, from 1."""
    return (b"\x45" + bytes(15) + bytes([10, 77, 0, target])).ljust(size, b"\0")


@pytest.fixture
def pipes():
    """A switch's two ports and the ends where their packets come out."""
    pairs = [os.pipe() for _ in range(2)]
    yield [Port(write) for _, write in pairs], [read for read, _ in pairs]
    for pair in pairs:
        for end in pair:
            os.close(end)


def test_wire_delays_loses_and_cuts(pipes):
    ports, ends = pipes
    switch = Switch(Wire(2, delay_ms=20, loss_percent=25), ports, random.Random(0))
    for _ in range(400):
        switch.take(0, packet(2), 5.0)
    assert 60 <= 400 - len(switch.under_way) <= 140
    assert switch.give(5.019) == pytest.approx(0.001)
    assert switch.give(5.02) == -1
    assert len(os.read(ends[1], 1 << 16)) == 100 * switch.count
    switch.take(0, packet(7), 6.0)
    ports[1].is_cut = True
    switch.take(0, packet(2), 6.0)
    switch.take(1, packet(1), 6.0)
    assert not switch.under_way


def test_wire_sends_no_faster_than_its_rate(pipes):
    ports, _ = pipes
    switch = Switch(Wire(2, rate_mbit=8), ports)
    for _ in range(3):
        switch.take(0, packet(2, 1000), 1.0)
    assert [due for due, *_ in switch.under_way] == pytest.approx([1.001, 1.002, 1.003])
    # What waits longer than the queue is long is lost.
    for _ in range(400):
        switch.take(0, packet(2, 1000), 1.0)
    assert len(switch.under_way) == pytest.approx(201, abs=2)


@pytest.mark.needs("hosts")
def test_hosts_end_with_the_program_that_made_them():
    maker = (
        "import sys; from tests.campaigns.namespaces import Hosts; "
        "from tests.campaigns.wire import Wire\n"
        "import subprocess, time\n"
        "with Hosts(Wire(1)) as hosts:\n"
        "    subprocess.Popen([*hosts.enter(1), 'sleep', '86399'])\n"
        "    print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", maker], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    before = sleepers()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert before
    assert not sleepers()


def sleepers() -> list[int]:
    """Processes of the program above that live."""
    return [int(line.parent.name) for line in Path("/proc").glob("[0-9]*/cmdline") if sleeps(line)]


def sleeps(line: Path) -> bool:
    try:
        return line.read_bytes() == b"sleep\x0086399\0"
    except OSError:
        return False
