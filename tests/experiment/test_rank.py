"""Who started a process, and what it makes of it."""

import os

import pytest

from harness.errors import UserError
from harness.experiment.rank import Place, address, check, first_host, forget_ranks, given, node_rank, without_ranks

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
SRUN = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "n[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(("variables", "starter"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
def test_a_place_is_read_from_whoever_gave_it(variables, starter):
    place = given(variables)
    assert place == Place(rank=3, local_rank=1, world_size=4, local_world_size=2, starter=starter)
    assert (place.num_nodes, place.node_rank) == (2, 1)
    check(place, devices=2, nodes=2)
    assert given(place.variables("n07", 15000)) == Place(
        rank=3, local_rank=1, world_size=4, local_world_size=2, starter="torchrun"
    )


@pytest.mark.parametrize("variables", [{}, {"RANK": "1"}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_no_place_means_that_the_run_starts_its_ranks(variables):
    assert given(variables) is None


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (2, 1), (1, 4)])
def test_another_number_of_processes_is_refused(devices, nodes):
    with pytest.raises(UserError, match=r"started 4 processes, 2 on a node; set trainer.devices=2 trainer.nodes=2"):
        check(given(TORCHRUN), devices, nodes)


def test_ranks_that_jump_between_nodes_are_refused():
    with pytest.raises(UserError, match="--distribution=block"):
        check(given(SRUN | {"SLURM_PROCID": "2"}), 2, 2)


def test_ranks_meet_at_the_first_node_of_the_step():
    assert address(SRUN) == ("n07", 15000 + 71 * 97 + 2)
    assert address(SRUN | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"
    assert address(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}) == ("10.0.0.1", 29500)
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT are not set"):
        address({"MASTER_ADDR": "n1"})


@pytest.mark.parametrize(
    ("nodes", "name"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[03-05,9],m1", "n03"), ("gpu-[1,7]", "gpu-1"), ("a-b[2]-ib,c", "a-b2-ib")],
)
def test_the_first_host_of_a_list(nodes, name):
    assert first_host(nodes) == name


def test_a_run_on_several_nodes_by_hand_has_to_know_which_one_this_is():
    assert node_rank(1, {}) == 0
    assert node_rank(2, {"NODE_RANK": "1"}) == 1
    for number in ({}, {"NODE_RANK": "2"}, {"NODE_RANK": "-1"}):
        with pytest.raises(UserError, match=r"trainer\.nodes=2: NODE_RANK=.*from 0 to 1"):
            node_rank(2, number)


def test_a_run_takes_no_rank_from_its_environment(monkeypatch):
    others = {"TORCHELASTIC_RUN_ID": "none", "ROLE_RANK": "1", "PL_GLOBAL_SEED": "1", "MASTER_PORT": "1"}
    assert without_ranks(TORCHRUN | others | {"HOME": "/root"}) == {"HOME": "/root"}
    for name, value in (TORCHRUN | others).items():
        monkeypatch.setenv(name, value)
    forget_ranks()
    assert not (TORCHRUN | others).keys() & os.environ.keys()
