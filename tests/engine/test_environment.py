"""What a launcher says to its processes is whole, or the process ends with what to do."""

import pytest

from clipfast.engine.config import ConfigError
from clipfast.engine.environment import (
    Launched,
    claims_to_be_main,
    processes_claimed,
    read_environment,
)

WHOLE = {
    **{"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, Launched(0, 0, 1, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": ""}, Launched(0, 0, 1, 1)),
        ({"MASTER_PORT": "29500"}, Launched(0, 0, 1, 1)),
        # The rank of a process that stands alone, whoever left it there.
        ({"RANK": "0"}, Launched(0, 0, 1, 1)),
        ({"LOCAL_RANK": "0"}, Launched(0, 0, 1, 1)),
        (WHOLE, Launched(3, 1, 4, 2)),
        # As DeepSpeed's launcher has it, and where nobody says how many are on a node.
        ({**WHOLE, "LOCAL_WORLD_SIZE": "", "LOCAL_SIZE": "2"}, Launched(3, 1, 4, 2)),
        ({**WHOLE, "LOCAL_WORLD_SIZE": ""}, Launched(3, 1, 4, 4)),
        # One task of srun that starts torchrun, or a shell within an allocation.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Launched(0, 0, 1, 1)),
        ({**WHOLE, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8"}, Launched(3, 1, 4, 2)),
    ],
)
def test_whole_environments_are_read(environment, launched):
    assert read_environment(environment) == launched


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE=2 and lacks RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"RANK": "1"}, "has RANK=1 and lacks LOCAL_RANK, WORLD_SIZE"),
        ({"LOCAL_RANK": "1"}, "has LOCAL_RANK=1 and lacks RANK"),
        ({**WHOLE, "LOCAL_RANK": ""}, "lacks LOCAL_RANK"),
        ({**WHOLE, "MASTER_ADDR": ""}, "lacks MASTER_ADDR"),
        ({**WHOLE, "MASTER_PORT": ""}, "lacks MASTER_PORT"),
        ({**WHOLE, "RANK": "one"}, "RANK='one', which is no whole number"),
        ({**WHOLE, "WORLD_SIZE": "4.0"}, "WORLD_SIZE='4.0', which is no whole number"),
        ({**WHOLE, "RANK": "4"}, "RANK=4, which has to be below WORLD_SIZE = 4"),
        ({**WHOLE, "RANK": "-1"}, "RANK=-1"),
        ({**WHOLE, "LOCAL_RANK": "2"}, "LOCAL_RANK=2, which has to be below LOCAL_WORLD_SIZE = 2"),
        ({**WHOLE, "RANK": "0"}, "LOCAL_RANK=1, which has to be below RANK + 1 = 1"),
        ({**WHOLE, "LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({**WHOLE, "WORLD_SIZE": "-4"}, "WORLD_SIZE=-4"),
        ({**WHOLE, "MASTER_PORT": "70000"}, "MASTER_PORT=70000: a port is a number from 1"),
        ({**WHOLE, "MASTER_PORT": "http"}, "MASTER_PORT='http', which is no whole number"),
    ],
)
def test_half_set_ones_are_refused_with_the_remedy(environment, reason):
    with pytest.raises(ConfigError) as error:
        read_environment(environment)
    assert reason in str(error.value)
    assert "deepspeed --" in str(error.value)
    assert "torchrun --" in str(error.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_RANK": "2", "PMI_SIZE": "4"},
    ],
)
def test_launchers_that_set_none_of_it_are_named(environment):
    with pytest.raises(ConfigError, match=r"started 4 processes .*=2.*one torchrun a node"):
        read_environment(environment)


def test_who_speaks_is_known_however_wrong_the_rest_is():
    assert claims_to_be_main({})
    assert claims_to_be_main({"RANK": "0"})
    assert not claims_to_be_main({"RANK": "1"})
    assert not claims_to_be_main({"RANK": "one"})
    assert processes_claimed({"WORLD_SIZE": "two"}) == 1
    assert processes_claimed({"WORLD_SIZE": "2"}) == 2
