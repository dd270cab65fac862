"""A lock on what DeepSpeed compiles at its first start that does not outlive a process that is killed.

torch holds it by a file that is there or not: a kill while it is there makes every later start wait without end. Here
the file says who made it.
"""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

log = logging.getLogger(__name__)


class Baton(FileBaton):
    """torch's, with host and process in the file."""

    def try_acquire(self) -> bool:
        """Takes the lock if it is free, or was held by a process of this machine that is no more."""
        path = Path(self.lock_file_path)
        # Nothing stands in that of another program.
        with suppress(FileNotFoundError, ValueError):
            host, process = path.read_text(encoding="utf-8").split()
            if host == socket.gethostname() and not psutil.pid_exists(int(process)):
                log.warning("%s: left by process %s, which was killed; removed", path, process)
                path.unlink()
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        os.write(file, f"{socket.gethostname()} {os.getpid()}".encode())
        self.fd = file  # type: ignore[assignment]
        return True


def use() -> None:
    """Gives it to torch's compiler of extensions."""
    cpp_extension.FileBaton = Baton  # type: ignore[misc]
