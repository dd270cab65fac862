"""The report in W&B: a run of its own beside the trials, with the table, and the files as an artifact."""

import csv
from pathlib import Path
from typing import Any

from harness.logging.wandb import WandbConfig, WandbMode, choose_mode


def send(folder: Path, project: str, study: str) -> None:
    """Logs report.csv as a table, and it with report.html as an artifact; offline where no server answers.

    Args:
        folder: Where the report was written; offline records go there too.
        project: W&B project.
        study: Names group and artifact.

    Raises:
        UserError: The package wandb is missing.
    """
    WandbConfig.library.find("--wandb")
    import wandb

    with open(folder / "report.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    run = wandb.init(
        mode=choose_mode(WandbMode.auto).value,  # type: ignore[arg-type]
        project=project,
        dir=folder,
        name=f"report of {study}",
        group=study,
        job_type="report",
        reinit="finish_previous",
        settings=wandb.Settings(console="off"),
    )
    run.log({"trials": wandb.Table(columns=list(head), data=[list[Any](row) for row in rows])})
    # W&B takes letters, digits and -_. in names.
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in f"report_{study}")
    files = wandb.Artifact(name, type="report")
    for path in (folder / "report.csv", folder / "report.html"):
        files.add_file(str(path))
    run.log_artifact(files)
    run.finish()
