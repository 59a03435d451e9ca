"""Several hosts on one machine, and the wire between them: a program that lives as long as its
standard input is open.

    python tests/campaigns/wire.py '{"hosts": 4, "delay_ms": 20, "loss_percent": 1}'

A host is a process with a network, a name, a /etc/hosts and process numbers of its own (Linux
namespaces). The kernel ends everything on a host with that process, and ends that process with this
program, so nothing can be left behind. Nothing has a name in the file system, either.

The wire is this program: it reads the packets of each host from a TUN device and writes them to the
host that they are for, later, or not at all. Kernels without netem can therefore have it too. It
prints one line when all is ready: the hosts' processes. It takes lines on standard input:

    cut 2       host 2 sends and receives nothing from now on; nobody is told
    mend 2      it does again
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
DEVICE = "net0"
# Jumbo frames: fewer packets for a wire that handles each one in Python.
MTU = 9000
_QUEUE_SECONDS = 0.2
_PACKETS_AT_A_TIME = 64
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_HOLD = """
echo {name} > /proc/sys/kernel/hostname
mount --bind {names} /etc/hosts
ip link set lo up
echo ready
# Reaps what is left on this host without a parent.
sleep infinity & wait
"""


@dataclass(frozen=True)
class Wire:
    """How the hosts are joined.

    Attributes:
        hosts: how many; they are called h1, h2 and so on.
        delay_ms: that a packet takes, one way.
        loss_percent: of packets that do not arrive.
        rate_mbit: that a host can send at; 0: no limit.
        own_name_is_loopback: a host's own name leads to 127.0.1.1, as Debian's installer leaves it.
        seed: of the loss.
    """

    hosts: int
    delay_ms: float = 0.0
    loss_percent: float = 0.0
    rate_mbit: float = 0.0
    own_name_is_loopback: bool = False
    seed: int = 0


@dataclass
class Port:
    """A host's end of the wire.

    Attributes:
        device: its TUN device.
        is_cut: nothing passes.
        free_at: when what it has sent until now is on the wire, by the monotonic clock.
    """

    device: int
    is_cut: bool = False
    free_at: float = 0.0


@dataclass
class Switch:
    """Carries packets from port to port."""

    wire: Wire
    ports: list[Port]
    chance: random.Random = field(default_factory=random.Random)
    # When it is due, a number that keeps the order, where to, what.
    under_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    count: int = 0

    def take(self, source: int, packet: bytes, now: float) -> None:
        """A host has sent a packet."""
        target = _target(packet)
        port = self.ports[source]
        if not 0 <= target < len(self.ports) or self.chance.random() < self.wire.loss_percent / 100:
            return
        due = now
        if self.wire.rate_mbit:
            if port.free_at - now > _QUEUE_SECONDS:
                return
            port.free_at = max(now, port.free_at) + 8e-6 * len(packet) / self.wire.rate_mbit
            due = port.free_at
        if port.is_cut or self.ports[target].is_cut:
            return
        self.count += 1
        due += self.wire.delay_ms / 1000
        heapq.heappush(self.under_way, (due, self.count, target, packet))

    def give(self, now: float) -> float:
        """Hand out what is due; seconds until the next one is, or -1."""
        while self.under_way and self.under_way[0][0] <= now:
            _, _, target, packet = heapq.heappop(self.under_way)
            if not self.ports[target].is_cut:
                os.write(self.ports[target].device, packet)
        return max(0.0, self.under_way[0][0] - now) if self.under_way else -1

    def run(self) -> None:
        """Until standard input ends."""
        poll = select.epoll()
        control = sys.stdin.fileno()
        poll.register(control, select.EPOLLIN)
        numbers = {port.device: number for number, port in enumerate(self.ports)}
        for device in numbers:
            os.set_blocking(device, False)
            poll.register(device, select.EPOLLIN)
        while True:
            for file, _ in poll.poll(self.give(time.monotonic())):
                if file == control:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    verb, host = line.split()
                    self.ports[int(host) - 1].is_cut = verb == "cut"
                    continue
                for _ in range(_PACKETS_AT_A_TIME):
                    try:
                        packet = os.read(file, MTU)
                    except BlockingIOError:
                        break
                    self.take(numbers[file], packet, time.monotonic())


def address(host: int) -> str:
    """Of a host, from 1."""
    return f"{NETWORK}.{host}"


def names(wire: Wire, host: int) -> str:
    """A host's /etc/hosts."""
    lines = ["127.0.0.1 localhost"]
    for other in range(1, wire.hosts + 1):
        is_itself = wire.own_name_is_loopback and other == host
        lines.append(f"{'127.0.1.1' if is_itself else address(other)} h{other}")
    return "\n".join(lines) + "\n"


def _target(packet: bytes) -> int:
    """The number of the port that an IPv4 packet is for, -1 for another packet."""
    return packet[19] - 1 if packet[0] >> 4 == 4 else -1


def _hold(wire: Wire, host: int, folder: Path) -> int:
    """Start a host; the process that it lives in."""
    file = folder / f"hosts{host}"
    file.write_text(names(wire, host))
    script = _HOLD.format(name=f"h{host}", names=file)
    spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    outer = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert outer.stdout is not None
    if outer.stdout.readline() != "ready\n":
        sys.exit(f"host {host} could not be made")
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    return int(children[0])


def _plug_in(host: int, holder: int) -> Port:
    """Make a host's device; this program keeps the other end."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as ours, open(f"/proc/{holder}/ns/net") as theirs:
        if libc.setns(theirs.fileno(), _CLONE_NEWNET):
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        request = struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(device, _TUNSETIFF, request)
        for words in (
            f"link set {DEVICE} mtu {MTU} up",
            f"addr add {address(host)}/24 dev {DEVICE}",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        libc.setns(ours.fileno(), _CLONE_NEWNET)
    return Port(device)


def main(wire: Wire) -> None:
    """Make the hosts, say so, carry packets until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="clipfast-hosts-") as folder:
        holders = [_hold(wire, host, Path(folder)) for host in range(1, wire.hosts + 1)]
    ports = [_plug_in(host, holder) for host, holder in enumerate(holders, 1)]
    print(json.dumps(holders), flush=True)
    Switch(wire, ports, random.Random(wire.seed)).run()


if __name__ == "__main__":
    main(Wire(**json.loads(sys.argv[1])))
