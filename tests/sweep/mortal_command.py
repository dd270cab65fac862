"""`python -m harness` whose trials run in `mortal_worker`."""

import sys
from pathlib import Path

from harness.__main__ import main
from harness.sweep import pool

pool.COMMAND = pool.WORKER = (sys.executable, str(Path(__file__).with_name("mortal_worker.py")))

if __name__ == "__main__":
    sys.exit(main())
