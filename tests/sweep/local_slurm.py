"""A SLURM of one node on this machine, in one folder: `python tests/sweep/local_slurm.py up|down FOLDER`, as root.

Needs `apt-get install slurm-wlm munge`. `up` prints what to export. Two partitions: `low`, whose jobs are requeued when
one of `high` wants their place. No accounting and no memory limits.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd")
MIB = 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configuration(folder: Path, cores: int) -> str:
    host = socket.gethostname().partition(".")[0]
    memory = int(0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB)
    settings = {
        "ClusterName": "local",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": free_port(),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthInfo": f"socket={folder}/munge.sock,cred_expire=5",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
        "ReturnToService": 2,
        "KillWait": 5,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    node = f"NodeName={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cores} RealMemory={memory} State=UNKNOWN"
    low = f"PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5"
    high = f"PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF"
    return "\n".join([*(f"{key}={value}" for key, value in settings.items()), node, low, high, ""])


def up(folder: Path, cores: int = 2) -> dict[str, str]:
    """Starts it and returns the environment to use it with."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(configuration(folder, cores))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    environment = {"SLURM_CONF": str(config)}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "seed")]
    pid = ["--pid-file", str(folder / "munged.pid"), "--socket", str(folder / "munge.sock")]
    for command in (
        ["munged", "--force", *munge, *pid],
        ["slurmctld", "-f", str(config), "-c"],
        ["slurmd", "-f", str(config)],
    ):
        subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    deadline = time.monotonic() + 30
    while True:
        state = ["sinfo", "--noheader", "--partition=low", "--format=%T"]
        answer = subprocess.run(state, env=os.environ | environment, capture_output=True, text=True)
        if answer.stdout.strip() == "idle":
            return environment
        assert time.monotonic() < deadline, answer.stdout + answer.stderr + (folder / "slurmctld.log").read_text()
        time.sleep(0.2)


def down(folder: Path) -> None:
    """Ends its jobs and what `up` started."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=environment, capture_output=True)
    time.sleep(0.5)
    for name in reversed(PROGRAMS):
        path = folder / f"{name}.pid"
        if path.is_file():
            os.kill(int(path.read_text()), signal.SIGTERM)


if __name__ == "__main__":
    where = Path(sys.argv[2]).absolute()
    if sys.argv[1] == "up":
        print("\n".join(f"export {name}={value}" for name, value in up(where).items()))
    else:
        down(where)
