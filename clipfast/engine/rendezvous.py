"""Where the ranks of a run meet, before they build anything: who is missing, and who is none of us.

torch waits for missing ranks in silence for minutes, and takes whatever answers at MASTER_PORT for
rank 0. Here rank 0 puts a greeting into torch's own store, each rank signs in once, and whoever
finds something wrong says so to all. The store stays: torch shares it when the group is built.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from clipfast.engine import interface
from clipfast.engine.config import ConfigError
from clipfast.engine.facts import contradictions, disagreement

# A store answers in milliseconds, but not while torch looks up the names of ranks that connect, one
# by one: where no name server answers, each takes the resolver's patience, mostly 10 s.
ANSWER_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
# Nodes of a large job start minutes apart.
MEET_SECONDS = 1800.0
_NEWS_SECONDS = 30.0
_POLL_SECONDS = 0.1
_LINGER_SECONDS = 1.0
# As torch's own.
_GROUP_TIMEOUT = timedelta(minutes=30)
_PORT_REMEDY = (
    "Give a free port, the same on all nodes: deepspeed --master_port PORT, or torchrun "
    "--rdzv-endpoint HOST:PORT"
)
_SAYS_NOTHING = (
    "takes connections and says nothing; rank 0 would be as silent where no name server answers: "
    "python -m clipfast.doctor looks"
)
# Held so that the port stays ours until torch's group shares the store.
_store: Any = None


@dataclass
class Meeting:
    """What the ranks share once they have met.

    Attributes:
        token: that nobody else knows; empty for one process.
        addresses: where rank 0 listens for the guards of the other ranks, to be tried in turn.
        listener: the socket there; None on the other ranks.
        first_host: name of rank 0's host.
    """

    token: str = ""
    addresses: list[tuple[str, int]] = field(default_factory=list)
    listener: socket.socket | None = None
    first_host: str = ""

    def close(self) -> None:
        """Leave the socket to whoever was given it."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None


def meet(
    rank: int,
    world_size: int,
    patience: float = MEET_SECONDS,
    facts: Mapping[str, str] | None = None,
    answer: float = ANSWER_SECONDS,
) -> Meeting:
    """Wait until every rank is here. A collective; nothing where there is one process.

    Args:
        rank: this process's.
        world_size: number of ranks.
        patience: seconds that ranks may start apart.
        facts: what has to be the same on every rank, by its name.
        answer: seconds that a store may be silent.

    Returns:
        What they share.

    Raises:
        ConfigError: on every rank that is here: the port is taken, something else answers there,
            two processes have one rank, ranks disagree about their number or about a fact, or some
            never come. The message says which and what to do.
    """
    global _store
    if world_size == 1 or dist.is_initialized() or _store is not None:
        return Meeting()
    deadline = time.monotonic() + patience
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and not agent_holds_the_store()
    base = _host(address, port) if hosts else _join(rank, address, port, deadline, answer)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"clipfast/{attempt}", base)
    towards_first = interface.address_towards(address, port)
    meeting = _invite(towards_first) if rank == 0 else Meeting()
    greeting: dict[str, Any] = {
        "world_size": world_size,
        "host": socket.gethostname(),
        "facts": dict(facts or {}),
        "token": meeting.token,
        "watch": meeting.addresses,
    }
    try:
        store.set(f"address{rank}", towards_first)
        _sign_in(rank, store, greeting, f"{address}:{port}", deadline, answer)
        of_last = store.get(f"address{world_size - 1}").decode()
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ConfigError(
            f"rank {rank} lost rank 0, at {address}:{port}, while the ranks met: "
            f"{_first_line(error)}. Look at what rank 0 printed"
        ) from error
    _store = base
    interface.choose(towards_first, of_last)
    meeting.token, meeting.first_host = greeting["token"], greeting["host"]
    of_rank_0 = [(str(host), int(port)) for host, port in greeting["watch"]]
    of_store = [(address, of_rank_0[0][1])]
    # Under torchrun its store need not be beside rank 0.
    both = (of_rank_0, of_store) if agent_holds_the_store() else (of_store, of_rank_0)
    meeting.addresses = [*both[0], *both[1]]
    return meeting


def store_of_attempt() -> Any:
    """A place for torch's group that no earlier attempt has written to, where torchrun starts the
    ranks again: with a port that was given, it keeps its store, and gloo would find the addresses
    of processes that are dead.

    Returns:
        None where torch's own store will do.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if _store is None or attempt == "0" or not agent_holds_the_store():
        return None
    _store.set_timeout(_GROUP_TIMEOUT)
    return PrefixStore(f"clipfast/{attempt}/group", _store)


def release() -> None:
    """Leave the store to torch's group, which has it by now."""
    global _store
    _store = None


def agent_holds_the_store() -> bool:
    """Whether torchrun holds the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _host(address: str, port: int) -> Any:
    """The store, at rank 0."""
    try:
        return TCPStore(address, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except (dist.DistNetworkError, RuntimeError) as error:
        reason = _first_line(error)
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            reason = "another program listens there, perhaps another run"
        raise ConfigError(
            f"rank 0 cannot open MASTER_PORT {port} on {socket.gethostname()}: {reason}. "
            f"{_PORT_REMEDY}"
        ) from error


def _join(rank: int, address: str, port: int, deadline: float, answer: float) -> Any:
    """The store that rank 0, or torchrun, holds."""
    _wait_for_port(rank, address, port, deadline)
    made: list[Any] = []

    def connect() -> None:
        with suppress(dist.DistNetworkError, dist.DistStoreError, RuntimeError):
            made.append(TCPStore(address, port, is_master=False, wait_for_workers=False))

    # A thread, because its own timeout is none against a server that accepts and says nothing.
    thread = threading.Thread(target=connect, name="clipfast-rendezvous", daemon=True)
    thread.start()

    def has_ended() -> bool:
        thread.join(_POLL_SECONDS)
        return not thread.is_alive()

    where = f"{address}:{port}"
    _until(
        has_ended,
        _answer_by(deadline, answer),
        lambda: f"rank {rank} waits: {where} {_SAYS_NOTHING}",
    )
    if not made:
        raise _foreign(where, "" if has_ended() else f" It {_SAYS_NOTHING}.")
    return made[0]


def _wait_for_port(rank: int, address: str, port: int, deadline: float) -> None:
    def is_open() -> bool:
        try:
            socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
        except socket.gaierror as error:
            raise ConfigError(
                f"MASTER_ADDR={address}: {error.strerror}. Give a name or an address of the first "
                "node that this node can reach"
            ) from error
        except OSError:
            return False
        return True

    what = f"rank 0, at {address}:{port}"
    if not _until(is_open, deadline, lambda: f"rank {rank} waits for {what}"):
        raise ConfigError(
            f"rank {rank} did not reach {what}. Is it running, and does a firewall lie "
            "between the nodes? MASTER_ADDR is to be the first node's, reachable from here"
        )


def _invite(towards_first: str) -> Meeting:
    """Listen for the guards of the other ranks, under the addresses that they may reach.

    Args:
        towards_first: the address of this machine that leads to MASTER_ADDR; empty for none.
    """
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    listener = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=dual)
    port = listener.getsockname()[1]
    hosts = [*([towards_first] if towards_first else []), socket.gethostname()]
    return Meeting(secrets.token_hex(16), [(host, port) for host in hosts], listener)


def _sign_in(
    rank: int, store: Any, greeting: dict[str, Any], where: str, deadline: float, answer: float
) -> None:
    """Tell rank 0 that this rank is here, and wait for the others.

    Args:
        rank: this one.
        store: that all ranks see.
        greeting: rank 0's is put into the store; the others' is compared with it, and holds
            what rank 0's did afterwards.
        where: the store is, for a person.
        deadline: on the monotonic clock.
        answer: seconds that the store may be silent.
    """
    store.set_timeout(timedelta(seconds=answer))
    world_size = greeting["world_size"]
    if rank == 0:
        store.set("greeting", json.dumps(greeting))
    elif not _until(
        lambda: store.check(["greeting"]),
        # torchrun's store is there before rank 0 is.
        deadline if agent_holds_the_store() else _answer_by(deadline, answer),
        lambda: f"rank {rank} waits for rank 0",
    ):
        raise _foreign(where)
    mine = dict(greeting)
    greeting |= json.loads(store.get("greeting"))
    if greeting["world_size"] != world_size:
        _refuse_all(
            rank,
            store,
            f"rank {rank} on {socket.gethostname()} was started with WORLD_SIZE="
            f"{world_size}, rank 0 at {where} with {greeting['world_size']}. Give every "
            f"node the same number of nodes and processes. Where they are two runs: {_PORT_REMEDY}",
        )
    if store.add(f"rank{rank}", 1) > 1:
        _refuse_all(
            rank,
            store,
            f"two processes are rank {rank}, the second on {socket.gethostname()}. Give "
            f"every node its own --node_rank. Where they are two runs: {_PORT_REMEDY}",
        )
    if different := contradictions(mine["facts"], greeting["facts"]):
        store.set(
            f"differs{store.add('differing', 1)}",
            f"rank {rank} on {socket.gethostname()} has {'; '.join(different)}",
        )
    store.add("signed in", 1)

    def are_all_here() -> bool:
        if rank == 0 and store.add("signed in", 0) == world_size:
            if count := store.add("differing", 0):
                said = [store.get(f"differs{n}").decode() for n in range(1, count + 1)]
                _refuse_all(0, store, disagreement(greeting["host"], said))
            # One key to look at, whatever the number of ranks that look ten times a second.
            store.set("all", "")
        if store.check(["refused"]):
            _refuse_all(rank, store, store.get("refused").decode())
        return bool(store.check(["all"]))

    def missing() -> str:
        absent = [str(i) for i in range(world_size) if not store.check([f"rank{i}"])]
        shown = ", ".join(absent[:16]) + (" ..." if len(absent) > 16 else "")
        return f"{len(absent)} of {world_size} ranks are not here yet: {shown}"

    news = missing if rank == 0 else None
    if not _until(are_all_here, deadline, news):
        _refuse_all(
            rank,
            store,
            f"{missing()}. Look at what they printed; ranks meet at {where}, and MASTER_ADDR, "
            "MASTER_PORT and the number of nodes have to be the same on every node",
        )


def _refuse_all(rank: int, store: Any, message: str) -> None:
    store.set("refused", message)
    if rank == 0:
        time.sleep(_LINGER_SECONDS)  # the others read it here
    raise ConfigError(message)


def _answer_by(deadline: float, answer: float) -> float:
    return min(deadline, time.monotonic() + answer)


def _foreign(where: str, silence: str = "") -> ConfigError:
    return ConfigError(
        f"what answers at {where} is not rank 0 of this run, but another program or another run."
        f"{silence} {_PORT_REMEDY}"
    )


def _until(
    holds: Callable[[], bool], deadline: float, news: Callable[[], str] | None = None
) -> bool:
    """Whether something came to hold before the deadline; prints news while it does not."""
    next_news = time.monotonic() + _NEWS_SECONDS
    while not holds():
        now = time.monotonic()
        if now >= deadline:
            return False
        if news is not None and now >= next_news:
            print(news(), file=sys.stderr, flush=True)
            next_news = now + _NEWS_SECONDS
        time.sleep(_POLL_SECONDS)
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
