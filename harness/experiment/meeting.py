"""Where the processes that torchrun, srun or a user on several nodes started agree on one run folder, before it exists.

Each of them gets the command line, but only the first makes the folder: the time in its name has to be one process's.
The others wait for its path at the address of rank 0, compare their own config with the first one's, and follow.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.experiment.rank import address, check, given, node_rank
from harness.trainer.standard import StandardConfig

if TYPE_CHECKING:
    from torch.distributed import Store

_WAIT = timedelta(minutes=5)
"""For nodes that start late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """One of the processes that are to agree."""

    number: int
    size: int

    def announce(self, folder: Path, config_hash: str) -> None:
        """Names the folder, as the first process, and waits until all others know it.

        Raises:
            UserError: Another one's config differs, or it does not come.
        """
        store = open_store(self.number, self.size, _WAIT)
        store.set("folder", f"{config_hash} {folder}")
        others = [f"hash/{number}" for number in range(1, self.size)]
        try:
            store.wait(others, _WAIT)
        except RuntimeError as error:
            raise UserError(
                f"not all {self.size} processes came within {_WAIT}: is the same run started on each?"
            ) from error
        for number, key in enumerate(others, start=1):
            _compare(store.get(key).decode(), config_hash, number)

    def follow(self, config_hash: str) -> Path:
        """Returns the folder that the first process made.

        Raises:
            UserError: The configs differ, the first process does not come, or the folder can not be seen from here.
        """
        try:
            store = open_store(self.number, self.size, _WAIT)
            theirs, _, path = store.get("folder").decode().partition(" ")
            store.set(f"hash/{self.number}", config_hash)
        except RuntimeError as error:
            raise UserError(f"the first process did not name a run folder within {_WAIT}: {error}") from error
        _compare(config_hash, theirs, self.number)
        if not (Path(path) / "config.yaml").is_file():
            raise UserError(
                f"{path} is not there: the run folder has to be on a disk that all nodes see (hydra.run.dir)"
            )
        return Path(path)


def called(trainer: StandardConfig) -> Meeting | None:
    """Returns the meeting that this process belongs to; None where it is the only one started.

    Raises:
        UserError: As for `check` and `node_rank`.
    """
    if (place := given()) is not None:
        check(place, trainer.devices, trainer.nodes)
        return Meeting(number=place.rank, size=place.world_size) if place.world_size > 1 else None
    if trainer.nodes == 1:
        return None
    return Meeting(number=node_rank(trainer.nodes), size=trainer.nodes)


def open_store(number: int, size: int, timeout: timedelta, listener: int | None = None) -> "Store":
    """Connects processes at the address of rank 0, where the first of them listens.

    Args:
        number: Of this process.
        size: Number of processes.
        timeout: How long to wait for an answer.
        listener: Descriptor of an open port to listen on.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = address()
    # torchrun listens itself, and keeps what restarts before this one stored.
    listens = number == 0 and not _is_hosted(os.environ)
    store = TCPStore(host, port, size, listens, timeout, wait_for_workers=False, master_listen_fd=listener)
    return PrefixStore(f"harness/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_hosted(environ: Mapping[str, str]) -> bool:
    return environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _compare(mine: str, theirs: str, number: int) -> None:
    if mine != theirs:
        raise UserError(
            f"process {number} has another config than process 0 (hash {mine}, {theirs}): start one command on all"
        )
