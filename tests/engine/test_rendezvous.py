"""Ranks meet, or each says within seconds why not. Real processes over real sockets."""

import http.server
import json
import multiprocessing
import os
import socket
import sys
import threading
import time

from tests import commands
from tests.engine import meeting
from tests.engine.launching import REPOSITORY, free_port

# Forked from a process that has imported all this: each rank is there in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.engine.meeting"])


def start(rank, world_size, port, address="127.0.0.1", patience=8.0, **facts):
    """A rank that waits to be let go by `verdicts`."""
    variables = {
        **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size},
        **{"LOCAL_WORLD_SIZE": max(world_size, rank + 1), "MASTER_ADDR": address},
        **{"MASTER_PORT": port, "FACTS": json.dumps(facts)},
        # A name server may drop some of many questions.
        "RES_OPTIONS": "timeout:1 attempts:1",
    }
    here, there = _CONTEXT.Pipe()
    variables = {name: str(value) for name, value in variables.items()}
    process = _CONTEXT.Process(target=meeting.rank, args=(there, variables, patience), daemon=True)
    process.start()
    return process, here


def verdicts(*ranks, within=10.0):
    """What each rank says, which has to come in time."""
    for _, pipe in ranks:
        assert pipe.recv() == "ready"
    began = time.monotonic()
    for _, pipe in ranks:
        pipe.send("go")
    said = [pipe.recv() if pipe.poll(60) else "silent" for _, pipe in ranks]
    assert time.monotonic() - began < within, said
    for process, _ in ranks:
        process.join(60)
        assert process.exitcode == 0
    return said


def test_ranks_that_are_there_meet():
    port = free_port()
    assert verdicts(*(start(rank, 3, port) for rank in range(3))) == ["met"] * 3


def test_a_taken_port_is_named_on_every_rank():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        first, second = verdicts(start(0, 2, port), start(1, 2, port, patience=3.0))
    assert f"rank 0 cannot open MASTER_PORT {port}" in first
    assert "another program listens there" in first
    assert "is not rank 0 of this run" in second
    assert "takes connections and says nothing" in second
    assert all("--master_port" in said for said in (first, second))


def test_a_server_of_another_kind_is_not_taken_for_rank_0():
    server = http.server.HTTPServer(("", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        (said,) = verdicts(start(1, 2, server.server_port, patience=3.0))
    finally:
        server.shutdown()
        server.server_close()
    assert "is not rank 0 of this run, but another program or another run" in said


def test_torchs_store_of_another_run_is_not_taken_for_rank_0():
    from torch.distributed import TCPStore

    other = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (said,) = verdicts(start(1, 2, other.port, patience=3.0))
    assert "is not rank 0 of this run" in said


def test_ranks_that_disagree_about_their_number_all_hear_of_it():
    port = free_port()
    said = verdicts(start(0, 3, port), start(1, 3, port), start(2, 4, port))
    for line in said:
        assert "was started with WORLD_SIZE=4, rank 0 at" in line


def test_two_processes_of_one_rank_are_named_on_all():
    port = free_port()
    said = verdicts(start(0, 3, port), start(1, 3, port), start(1, 3, port))
    for line in said:
        assert "two processes are rank 1" in line


def test_ranks_of_another_command_or_code_are_named_on_all():
    port = free_port()
    given = [{"batch": "64", "torch": "2"}, {"batch": "64", "torch": "3"}, {"batch": "32"}]
    said = verdicts(*(start(rank, 3, port, **facts) for rank, facts in enumerate(given)))
    for line in said:
        assert "ranks disagree; rank 0 is on" in line
        assert "rank 1 on" in line
        assert "has torch 3 where rank 0 has 2" in line
        assert "has batch 32 where rank 0 has 64; torch unknown where rank 0 has 2" in line


def test_ranks_that_never_come_are_named():
    port = free_port()
    said = verdicts(start(0, 4, port, patience=2.0), start(2, 4, port, patience=2.0))
    for line in said:
        assert "2 of 4 ranks are not here yet: 1, 3" in line or "lost rank 0" in line
    assert any("are not here yet" in line for line in said)


def test_an_address_that_is_none_and_one_where_nobody_is():
    nowhere, silent = verdicts(
        start(1, 2, free_port(), address="no.such.host.invalid"),
        start(1, 2, free_port(), patience=1.0),
    )
    assert "MASTER_ADDR=no.such.host.invalid" in nowhere
    assert "did not reach rank 0, at 127.0.0.1" in silent


def test_a_recipe_ends_with_the_remedy_and_without_a_traceback():
    done = commands.run(
        [sys.executable, str(REPOSITORY / "recipes" / "emoji.py")],
        env={**os.environ, "RANK": "one", "WORLD_SIZE": "2"},
        timeout=60,
    )
    assert done.returncode == 2
    assert "RANK='one', which is no whole number" in done.stderr
    assert "Traceback" not in done.stderr
