"""`python -m harness`: composes and checks the command line, then starts one run or a multirun."""

import signal
import sys
from collections.abc import Sequence

import hydra
from hydra._internal import utils
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from harness import compose, registry
from harness.config import RunConfig, config_hash
from harness.errors import UserError, tell
from harness.experiment import resume
from harness.experiment.launch import Task, become_trial, swept
from harness.experiment.meeting import Meeting, called
from harness.experiment.rank import given
from harness.help import render_help
from harness.sweep import study as studies

_UNCHECKED = ("hydra_help", "version", "info", "shell_completion", "config_path", "config_name", "config_dir")
"""Hydra flags that show something of Hydra's, or read configs from elsewhere: left to Hydra alone."""


def main() -> int:
    """Returns the exit code: 0 success, 2 a mistake of the user's, 130 Ctrl-C, anything else a crash."""
    registry.load()
    args = utils.get_args_parser().parse_args()
    try:
        if args.help:
            print(render_help(args.overrides))
            return 0
        if args.multirun and args.cfg is not None:
            raise UserError("--cfg shows the config of one run: leave out -m, and give each key one value")
        flags = [argument for argument in sys.argv[1:] if argument not in args.overrides]
        study, overrides = studies.apply(args.overrides, multirun=args.multirun)
        overrides = resume.apply(overrides)
        task = Task(command=sys.argv[1:], study=study)
        if not any(getattr(args, flag, None) for flag in _UNCHECKED):
            task.checked = compose.check_all(_asked(overrides, study) if args.multirun else [overrides])
            if not task.checked:
                raise UserError("nothing to run: a key has no values to vary over")
            if args.cfg is None:
                task.meeting = _meeting(next(iter(task.checked.values())), multirun=args.multirun)
        if args.multirun:
            from harness.sweep import grid, launcher, search  # noqa: F401 - Hydra's plugins

            overrides += swept(overrides)
        return _start([*flags, *overrides], task)
    except UserError as error:
        tell(error)
        return 2


def _asked(overrides: Sequence[str], study: "studies.Study | None") -> list[list[str]]:
    """Returns the trials of a grid; of another sweeper's those that try each value."""
    sweepers = [item.partition("=")[2] for item in overrides if item.startswith("hydra/sweeper=")]
    if sweepers[-1:] in ([], ["grid"], ["basic"]):
        for item in compose.parse(overrides):
            if item.is_sweep_override() and not item.is_discrete_sweep():
                remedy = "a grid takes values, key=a,b,c; to draw from a distribution, add hydra/sweeper=optuna"
                raise UserError(f"{item.input_line}: {remedy}")
        return compose.grid(overrides, [[]] if study is None else study.arms)
    if study is not None and study.methods:
        raise UserError(f"sweep={study.name}: has methods, which only hydra/sweeper=grid combines with axes")
    return compose.probes(overrides)


def _meeting(run: RunConfig, *, multirun: bool) -> Meeting | None:
    """Returns where to meet the other processes of a run; all but the first become its ranks here.

    Raises:
        UserError: As for `called` and `Meeting.follow`; or several processes were started for a multirun.
    """
    if multirun:
        if (place := given()) is not None and place.world_size > 1:
            remedy = "a multirun starts the processes of its trials; start it once, with trainer.devices"
            raise UserError(f"{place.starter} started {place.world_size} processes: {remedy}")
        return None
    meeting = called(run.trainer)
    if meeting is not None and meeting.number > 0:
        become_trial(meeting.follow(config_hash(run)), meeting)
    return meeting


def _start(arguments: Sequence[str], task: Task) -> int:
    """Hands the command line to Hydra, which makes the folders and calls the task, or the launcher of a multirun.

    Raises:
        UserError: A folder can not be made, or a key of Hydra's own is wrong.
    """
    sys.argv[1:] = arguments
    # It would print its errors by itself, and leave with 1.
    utils.run_and_report = lambda func: func()
    try:
        hydra.main(config_path=str(registry.CONF), config_name=compose.ROOT, version_base="1.3")(task)()
    except KeyboardInterrupt:
        task.finish()
        return 128 + (task.ended_by or signal.SIGINT)
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if task.begun:
            raise
        if isinstance(error, OSError) and not isinstance(error, HydraException):
            raise UserError(f"the run folder can not be made: {error}") from error
        raise compose.explain(error, arguments) from error
    return task.finish()


if __name__ == "__main__":
    sys.exit(main())
