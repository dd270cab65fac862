"""`harness.sweep.slurm_job` that runs a fake trial."""

import sys
from pathlib import Path

from harness.sweep import slurm_job

slurm_job.COMMAND = (sys.executable, str(Path(__file__).with_name("fake_trial.py")))

if __name__ == "__main__":
    sys.exit(slurm_job.main(Path(sys.argv[1]), "requeue" in sys.argv[2:]))
