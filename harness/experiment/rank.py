"""Which of a run's processes this is, in torch's rank variables, and who started it: this run, torchrun or srun."""

import ctypes
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UserError, reject

RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    # srun's, for the tasks of a job step.
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_RANK_PREFIXES = ("PL_", "ROLE_", "TORCHELASTIC_")
PARENT = "HARNESS_PARENT"
"""Variable with the process id of who started a trial or a rank, which does not outlive it."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A process among those of a run."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    """Processes on each node."""
    starter: str = "the run"

    @property
    def num_nodes(self) -> int:
        """Nodes of the run."""
        return self.world_size // self.local_world_size

    @property
    def node_rank(self) -> int:
        """Number of the node, where ranks go on from node to node."""
        return self.rank // self.local_world_size

    def variables(self, address: str, port: int) -> dict[str, str]:
        """Returns the environment of this rank."""
        numbers = {
            "RANK": self.rank,
            "LOCAL_RANK": self.local_rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "NODE_RANK": self.node_rank,
            "GROUP_RANK": self.node_rank,
            "MASTER_PORT": port,
        }
        return {"MASTER_ADDR": address} | {name: str(number) for name, number in numbers.items()}


def global_rank() -> int:
    """Returns which of the run's processes this is; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns which of this node's processes this is, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def given(environ: Mapping[str, str] = os.environ) -> Place | None:
    """Returns the place that torchrun or srun gave this process; None where a run starts its own ranks.

    A single task of SLURM starts its own: it is how a script runs, whether by srun or not.
    """
    if all(name in environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        world_size = int(environ["WORLD_SIZE"])
        return Place(
            rank=int(environ["RANK"]),
            local_rank=int(environ["LOCAL_RANK"]),
            world_size=world_size,
            local_world_size=int(environ.get("LOCAL_WORLD_SIZE", world_size)),
            starter="torchrun",
        )
    if (num_tasks := int(environ.get("SLURM_STEP_NUM_TASKS", "1"))) == 1:
        return None
    return Place(
        rank=int(environ["SLURM_PROCID"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        world_size=num_tasks,
        local_world_size=-(-num_tasks // int(environ.get("SLURM_STEP_NUM_NODES", "1"))),
        starter="srun",
    )


def check(place: Place, devices: int, nodes: int) -> None:
    """Compares what was started with what the config asks for.

    Raises:
        UserError: They differ, or ranks are not numbered node by node.
    """
    if place.world_size != devices * nodes or place.local_world_size != devices:
        started = f"{place.starter} started {place.world_size} processes, {place.local_world_size} on a node"
        remedy = f"set trainer.devices={place.local_world_size} trainer.nodes={place.num_nodes}, or start as many"
        raise UserError(f"trainer.devices={devices}, trainer.nodes={nodes}: {started}; {remedy}")
    if place.rank % place.local_world_size != place.local_rank:
        raise UserError(
            f"rank {place.rank} is process {place.local_rank} of its node: ranks have to go on from node to node; "
            "use srun --distribution=block"
        )


def node_rank(nodes: int, environ: Mapping[str, str] = os.environ) -> int:
    """Returns which of its nodes this one is, for a run that is started by hand on each of them.

    Raises:
        UserError: Nothing says so.
    """
    if nodes == 1:
        return 0
    number = environ.get("NODE_RANK")
    if number is None or not number.isdigit() or int(number) >= nodes:
        remedy = f"start it on each node, with NODE_RANK from 0 to {nodes - 1}, MASTER_ADDR and MASTER_PORT"
        raise reject("trainer.nodes", nodes, f"NODE_RANK={number}: {remedy}; or by srun or torchrun")
    return int(number)


def address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Returns where rank 0 listens: as the variables say, under SLURM on the first node of the step.

    Raises:
        UserError: Nothing says where.
    """
    host, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if "SLURM_STEP_NUM_TASKS" in environ:
        alone = environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
        host = host or ("127.0.0.1" if alone else first_host(environ["SLURM_STEP_NODELIST"]))
        # Known to all tasks without a word, and another one for each step of each job.
        port = port or str(15000 + (int(environ["SLURM_JOB_ID"]) * 97 + int(environ["SLURM_STEP_ID"])) % 15000)
    if host is None or port is None:
        raise UserError("MASTER_ADDR and MASTER_PORT are not set: give the first node's address and a free port of it")
    return host, int(port)


def first_host(nodes: str) -> str:
    """Returns the first name of SLURM's list: `n[03-05,9],m1` gives n03."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    assert found is not None, nodes
    return "".join(part or "" for part in found.groups())


def without_ranks(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns an environment for a run that is none of this one's ranks."""
    return {
        name: value
        for name, value in environ.items()
        if name not in RANK_VARIABLES and not name.startswith(_RANK_PREFIXES)
    }


def forget_ranks() -> None:
    """Drops what this process inherited: a run of one process is rank 0."""
    for name in set(os.environ) - without_ranks().keys():
        del os.environ[name]


def end_with_parent(number: signal.Signals) -> None:
    """Asks the kernel for a signal when the parent ends, however it ends (Linux).

    The parent is what `HARNESS_PARENT` names, or torchrun or srun; a run by itself outlives its shell if that lets it.
    """
    parent = int(os.environ.pop(PARENT, os.getppid() if given() is not None else 0))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if not parent or prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)
