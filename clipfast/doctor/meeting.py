"""Whether the ranks can meet: the address, the port, and who holds it."""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from clipfast.doctor.exchange import Exchange, StoreExchange
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.engine.config import ConfigError
from clipfast.engine.interface import address_towards
from clipfast.engine.launch import Process
from clipfast.engine.rendezvous import agent_holds_the_store, meet

_LISTENS = "0A"
# Beside it slow name servers are told of.
_ANSWER_SECONDS = 20.0
_REMEDY = (
    "End that program, or give a free port, the same on all nodes: deepspeed --master_port PORT, "
    "or torchrun --rdzv-endpoint HOST:PORT"
)


def meet_all(process: Process, patience: float) -> tuple[Exchange, list[Finding]]:
    """Meet the other ranks.

    Args:
        process: this rank.
        patience: seconds to wait for ranks.

    Returns:
        The exchange with the others, or with nobody where they cannot meet; and what was found.
    """
    rank, world_size = process.rank, process.world_size
    alone = Exchange(rank, (rank,))
    if world_size == 1:
        return alone, [ok("one process, which meets nobody")]
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    hosts = rank == 0 and not agent_holds_the_store()
    problem = unfit_address(os.environ["MASTER_ADDR"], hosts)
    if problem is None and hosts:
        problem = taken_port(int(os.environ["MASTER_PORT"]))
    if problem is not None:
        return alone, [problem]
    slow = slow_names(rank)
    try:
        meet(rank, world_size, patience, answer=_ANSWER_SECONDS).close()
        met = [ok(f"{world_size} ranks met at {where}"), *slow]
        return StoreExchange(rank, world_size), met
    except (ConfigError, RuntimeError) as error:
        words, _, remedy = str(error).partition(". ")
        return alone, [failure(words, remedy or _REMEDY, [rank]), *slow]


def slow_names(rank: int, patience: float = 1.0) -> list[Finding]:
    """Whether the name of this node's address is told soon. torch's store asks for the name of each
    rank that connects, one after another, and logs it.

    Args:
        rank: this one.
        patience: seconds.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own = address_towards(address, port)
    # As its listener sees addresses of the fourth version.
    seen = own if ":" in own else f"::ffff:{own}"

    def look() -> None:
        with suppress(OSError):
            socket.getnameinfo((seen, port), 0)

    asking = threading.Thread(target=look, name="clipfast-names", daemon=True)
    asking.start()
    asking.join(patience)
    if not asking.is_alive():
        return []
    return [
        warning(
            f"no name server told the name of {own}, an address of {socket.gethostname()}, within "
            f"{patience:.0f} s: ranks that connect wait for it, one after another",
            "Let one answer for addresses too, or shorten the wait on every node: "
            "RES_OPTIONS='timeout:1 attempts:1'",
            [rank],
        )
    ]


def unfit_address(address: str, hosts: bool) -> Finding | None:
    """What is wrong with MASTER_ADDR, seen from this machine.

    Args:
        address: a name or a number.
        hosts: whether rank 0 is here, which the others reach under it.
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        return failure(
            f"MASTER_ADDR={address} on {socket.gethostname()}: {error.strerror}",
            "Give a name or an address of the first node that every node can reach",
        )
    if not hosts or any(_is_ours(str(each)) for each in found):
        return None
    return failure(
        f"MASTER_ADDR={address} is {', '.join(sorted(map(str, found)))}, which is no address of "
        f"{socket.gethostname()}, where rank 0 runs",
        "Give an address of the node that rank 0 is started on, or start rank 0 (--node_rank 0) "
        "there",
    )


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def taken_port(port: int) -> Finding | None:
    """Who listens at the port that rank 0 is to open; None where it is free."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
            return None
        except PermissionError:
            return failure(
                f"MASTER_PORT {port} may not be opened: ports below 1024 are the system's",
                "Give one from 1024 to 65535, the same on all nodes (deepspeed --master_port)",
                [0],
            )
        except OSError as error:
            reason = error.strerror
    who = holder_of(port)
    return failure(
        f"MASTER_PORT {port} on {socket.gethostname()} is in use"
        + (f" by {who}" if who else f" ({reason}), by a process of another user or container"),
        _REMEDY,
        [0],
    )


def holder_of(port: int) -> str:
    """The process of this machine that listens at a port, as far as it can be seen."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in sockets:
                        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                        command = words.decode(errors="replace").strip()[:120]
                        return f"process {folder.name} ({command})"
    return ""
