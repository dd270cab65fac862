"""`python -m harness` whose sweeps start fake trials."""

import sys
from pathlib import Path

from harness.__main__ import main
from harness.sweep import pool, slurm_queue

pool.COMMAND = (sys.executable, str(Path(__file__).with_name("fake_trial.py")))
slurm_queue.JOB = (sys.executable, str(Path(__file__).with_name("fake_job.py")))

if __name__ == "__main__":
    sys.exit(main())
