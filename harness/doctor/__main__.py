"""`python -m harness.doctor`: looks at the machine and, given overrides, at the data of the run that they describe."""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import registry
from harness.command_line import Parser, run
from harness.errors import UserError, tell

_USAGE = """\
python -m harness.doctor [--decode] [--card NAME] [--out FOLDER] [group=option ...] [key=value ...]

Looks at this machine and, with the overrides of a run, at its data and at the memory of a step: no training, no
weights. The overrides are those of python -m harness.

Examples
  python -m harness.doctor
  python -m harness.doctor data=digits
  python -m harness.doctor data=files data.train=train.jsonl data.val=val.jsonl data.max_length=4096
  python -m harness.doctor --card h100 model=qwen3_vl_4b tuner=full data=files data.train=train.jsonl
  python -m harness.doctor --decode experiment=caption_lora data.train=train.jsonl data.val=val.jsonl

Flags
  --decode       decode every image and video, in data.index_workers processes, not 200 at random
  --card NAME    predict memory for a GPU that is not here (h100, l40s, ...), or for so many GiB
  --out FOLDER   where doctor.json and doctor.png go; default outputs/doctor/<time>
  --help         this text

Exit code 0: training could start. 2: it could not, and the message at the end says why.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 where training could start, 2 where not, 130 after Ctrl-C."""
    parser = Parser("python -m harness.doctor")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--card")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    return run(parser, arguments, _USAGE, _examine)


def _examine(asked: argparse.Namespace) -> int:
    from harness.doctor import machine

    config = _config(asked.overrides)
    if asked.decode and config is None:
        raise UserError("--decode decodes the images of a run: give its overrides too, data=... at least")
    if asked.card is not None and config is None:
        raise UserError("--card predicts the memory of a run: give its overrides too, data=... at least")
    folder = _folder(asked.out)
    _log()
    report: dict[str, Any] = {"title": " ".join(asked.overrides) or "machine", "overrides": asked.overrides}
    report |= {"machine": machine.measure(), "splits": {}, "histograms": {}, "findings": [], "failures": []}
    machine.show(report["machine"])
    print()
    report["failures"] = machine.problems(report["machine"])
    if config is not None and not report["failures"]:
        report |= _data(config, asked.decode)
        if not report["failures"]:
            report |= _memory(config, report["machine"]["torch"].get("gpus", []), asked.card)
    return _conclude(report, folder)


def _config(overrides: Sequence[str]) -> Any:
    """Returns the checked config that the overrides describe, or None without any."""
    if not overrides:
        return None
    from harness import compose
    from harness.experiment import resume

    registry.load()
    return compose.check(resume.apply(overrides), multirun=False)[0]


def _data(config: Any, decode_all: bool) -> dict[str, Any]:
    # Here, not above: it imports torch and Lightning, which `machine` has found to work.
    from harness.doctor import data

    try:
        report = data.measure(config, decode_all=decode_all)
    except UserError as error:
        return {"failures": [str(error)]}
    data.show(report)
    return report


def _memory(config: Any, gpus: list[dict[str, Any]], card: str | None) -> dict[str, Any]:
    from harness.doctor import memory

    try:
        found = memory.measure(config, gpus, card)
    except UserError as error:
        return {"failures": [str(error)]}
    if found is None:
        return {}
    memory.show(found)
    return {"memory": found, "failures": [found["failure"]] if found["failure"] else []}


def _folder(out: Path | None) -> Path:
    """Makes the folder before the work, so that a mistake in it shows at once."""
    folder = out or Path("outputs") / "doctor" / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: the folder can not be made: {error.strerror}") from error
    return folder


def _log() -> None:
    """Shows warnings and the progress of long work, and nothing else of what libraries say."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("harness.data.index.progress").setLevel(logging.INFO)
    logging.captureWarnings(True)


def _conclude(report: dict[str, Any], folder: Path) -> int:
    """Writes the files, and says what was found and whether training could start."""
    from harness.doctor import picture

    (folder / "doctor.json").write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    picture.draw(report, folder / "doctor.png")
    for finding in report["findings"]:
        print(f"finding: {finding}")
    if not report["failures"]:
        print("training could start" if report["overrides"] else "this machine can train")
    sys.stdout.flush()
    if report["failures"]:
        tell(UserError("training would fail: " + "\n  and: ".join(report["failures"])))
    print(f"doctor: {folder}")
    return 2 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
