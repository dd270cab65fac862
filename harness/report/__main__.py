"""`python -m harness.report FOLDER...`: the table on the console, report.csv, pictures and report.html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.command_line import Parser, run
from harness.errors import UserError

_USAGE = """\
python -m harness.report [--metric NAME] [--tuned KEY]... [--out FOLDER] [--wandb PROJECT] FOLDER [FOLDER ...]

Compares the trials of sweeps, or of single runs: those that completed are counted, all are shown. Works while they run.

Examples
  python -m harness.report outputs/multirun/2026-01-31_10-00-00
  python -m harness.report --metric val/exact_match outputs/multirun/lora outputs/multirun/dora

Flags
  --metric NAME   what to compare by; default: the study's metric, else trainer.monitor
  --tuned KEY     an axis at whose best value a method is taken; default: the learning rates; repeat for several
  --out FOLDER    where report.html, report.csv and the pictures go; default: the first folder
  --no-pictures   leave the PNGs out
  --wandb PROJECT send table and files to W&B too (offline where no server answers), in the group of the first folder
  --help          this text
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 where a folder or a flag can not be used, 130 after Ctrl-C."""
    parser = Parser("python -m harness.report")
    parser.add_argument("--metric")
    parser.add_argument("--tuned", action="append")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--wandb")
    parser.add_argument("folders", nargs="*", type=Path)
    return run(parser, arguments, _USAGE, _report)


def _report(asked: argparse.Namespace) -> int:
    if not asked.folders:
        raise UserError("no folder given; see python -m harness.report --help")
    from harness.report import page, table
    from harness.report.analysis import analyse

    report = analyse(asked.folders, metric=asked.metric, tuned=asked.tuned)
    out = asked.out or asked.folders[0]
    try:
        out.mkdir(parents=True, exist_ok=True)
        table.write_csv(report, out / "report.csv")
        (out / "report.html").write_text(page.render(report), encoding="utf-8")
        if not asked.no_pictures:
            from harness.report.picture import draw

            draw(report, out)
    except OSError as error:
        raise UserError(f"--out {out}: can not be written: {error.strerror}") from error
    print(table.text(report))
    print(f"report: {out / 'report.html'}")
    if asked.wandb:
        from harness.report.artifact import send

        send(out, asked.wandb, asked.folders[0].resolve().name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
