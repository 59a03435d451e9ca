"""Faults that a machine, a launcher or a command line can have, planted: the doctor finds each."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from clipfast.doctor.meeting import slow_names
from tests.doctor.ranks import (
    examine,
    one_gpu_for_both,
    rank_variables,
    small_shared_memory,
)
from tests.engine.launching import REPOSITORY, free_port


def two_ranks(tmp_path, only, second=(), plant=None, **variables):
    """Exit statuses, and what rank 0 printed; ``second`` and the variables are rank 1's."""
    port = free_port()
    options = ["--only", *only.split()]
    (status0, printed), (status1, silent) = examine(
        tmp_path,
        (rank_variables(0, port), options),
        (rank_variables(1, port, **variables), [*options, *second]),
        plant=plant,
    )
    assert not silent, silent
    return (status0, status1), printed


@pytest.mark.needs("extension")
def test_ranks_without_a_fault_end_with_0_and_a_report(tmp_path):
    report = tmp_path / "report" / "doctor.json"
    statuses, printed = two_ranks(
        tmp_path, "installed operators flags devices shm clock", ["--json", "elsewhere"]
    )
    assert statuses == (0, 0), printed
    assert "ok flags the same on all ranks: 2 x 16 pairs" in printed
    ((status, printed),) = examine(
        tmp_path, ({}, ["--only", "flags", "clock", "--json", str(report)])
    )
    assert status == 0, printed
    record = json.loads(report.read_text())
    assert (record["status"], record["ranks"]) == (0, 1)
    assert [each["check"] for each in record["findings"]] == ["meeting", "flags", "clock"]
    assert record["seen"]["flags"]["0"]["seen"]["options"]["--batch-size"] == 16


def test_two_ranks_with_one_local_rank_are_named(tmp_path):
    statuses, printed = two_ranks(tmp_path, "devices", LOCAL_RANK=0)
    assert statuses == (1, 1)
    assert "FAILURE devices [ranks 0, 1]" in printed
    assert "have the same device: LOCAL_RANK=0" in printed
    assert "-> do Each rank of a node needs a LOCAL_RANK of its own" in printed


def test_two_ranks_on_one_gpu_by_visible_devices_are_named(tmp_path):
    port = free_port()
    ranks = [
        (rank_variables(rank, port, CUDA_VISIBLE_DEVICES="3,3"), ["--only", "devices"])
        for rank in range(2)
    ]
    (status, printed), _ = examine(tmp_path, *ranks)
    assert status == 1
    assert "entry 3 of CUDA_VISIBLE_DEVICES=3,3" in printed


def test_two_ranks_that_see_one_gpu_are_named_by_its_uuid(tmp_path):
    statuses, printed = two_ranks(tmp_path, "devices", plant=one_gpu_for_both)
    assert statuses == (1, 1)
    assert "have the same device: GPU GPU-7f (0000:1b:00)" in printed


@pytest.mark.needs("mount")
def test_a_full_dev_shm_is_named_with_what_fills_it(tmp_path):
    ((status, printed),) = examine(
        tmp_path, ({}, ["--only", "shm", "group"]), plant=small_shared_memory
    )
    assert status == 1
    assert "FAILURE shm" in printed
    assert "ranks of this node need 66 MB; the largest files there: left_by_a_run" in printed
    assert "--shm-size" in printed
    assert "warning group [rank 0] not looked at: see check shm" in printed


def test_another_batch_on_one_rank_is_named_with_both_values(tmp_path):
    statuses, printed = two_ranks(tmp_path, "flags", ["--batch-size", "24"])
    assert statuses == (1, 1)
    assert "FAILURE flags [rank 1] --batch-size is 32 on rank 0 and 24 on rank 1" in printed
    assert "Give every rank the same command line" in printed


def test_options_that_cannot_be_on_one_rank_are_that_ranks_failure(tmp_path):
    statuses, printed = two_ranks(tmp_path, "flags group", ["--batch-size", "7"])
    assert statuses == (1, 1)
    assert "[rank 1] --batch-size 7 does not divide by 2 ranks: pass --batch-size 8" in printed
    assert "warning group [rank 1] not looked at: see check flags" in printed


def test_a_port_in_use_is_named_with_who_has_it(tmp_path):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        results = examine(
            tmp_path, *((rank_variables(rank, port), ["--only", "limits"]) for rank in range(2))
        )
    (status0, printed0), (status1, printed1) = results
    assert (status0, status1) == (1, 1)
    assert f"FAILURE meeting [rank 0] MASTER_PORT {port} on" in printed0
    assert f"is in use by process {os.getpid()} (" in printed0
    assert "deepspeed --master_port PORT" in printed0
    assert "ok limits" in printed0
    assert "is not rank 0 of this run" in printed1


def test_an_address_that_is_not_here_is_named(tmp_path):
    variables = rank_variables(0, free_port(), MASTER_ADDR="192.0.2.7")
    ((status, printed),) = examine(tmp_path, (variables, ["--only", "limits"]))
    assert status == 1
    assert "MASTER_ADDR=192.0.2.7 is 192.0.2.7, which is no address of" in printed


def test_ranks_that_never_come_are_named(tmp_path):
    variables = rank_variables(0, free_port())
    options = ["--only", "limits", "--patience", "1"]
    ((status, printed),) = examine(tmp_path, (variables, options))
    assert status == 1
    assert "FAILURE meeting [rank 0] 1 of 2 ranks are not here yet: 1" in printed


def test_an_extension_that_does_not_load_is_a_failure():
    program = textwrap.dedent(
        """
        import importlib.machinery, sys

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "clipfast._C":
                    return importlib.machinery.ModuleSpec(name, self)
            def create_module(self, spec):
                raise ImportError("undefined symbol: _ZN3c104impl")
            def exec_module(self, module):
                raise AssertionError

        sys.meta_path.insert(0, Broken())
        from clipfast.doctor.__main__ import main
        sys.argv = ["clipfast.doctor", "--only", "operators"]
        main()
        """
    )
    variables = {n: v for n, v in os.environ.items() if n not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stderr
    assert "compiled operators are absent: undefined symbol: _ZN3c104impl" in printed
    assert "pip install -e . --no-build-isolation" in printed


def test_a_package_that_cannot_be_imported_is_a_failure(monkeypatch, capsys):
    from clipfast.doctor.__main__ import main

    monkeypatch.setitem(sys.modules, "clipfast.doctor.run", None)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "FAILURE installed the package clipfast.doctor.run is missing" in " ".join(
        capsys.readouterr().out.split()
    )


def test_variables_of_half_a_launcher_are_named(tmp_path):
    ((status, printed),) = examine(tmp_path, ({"RANK": "1", "WORLD_SIZE": "2"}, []))
    assert status == 1
    assert "FAILURE launcher the environment has RANK=1, WORLD_SIZE=2 and lacks" in printed


def test_a_check_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    variables = rank_variables(0, 1, WORLD_SIZE=1, LOCAL_WORLD_SIZE=1)
    ((status, printed),) = examine(tmp_path, (variables, ["--only", "dsk", "limits"]))
    assert status == 1
    assert "--only dsk: no such check; there are installed, operators, flags" in printed


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_name_server_that_does_not_answer_for_addresses_is_told_of(monkeypatch, seconds):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    asked = []

    def look(address, flags):
        asked.append(address[0])
        time.sleep(seconds)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getnameinfo", look)
    found = slow_names(3, patience=0.2)
    assert asked == ["::ffff:127.0.0.1"]
    assert [each.level for each in found] == ["warning"] * (seconds > 0)
    for each in found:
        assert "no name server told the name of 127.0.0.1" in each.seen
        assert each.ranks == (3,)
