"""Why training with a config would fail: what the doctor saw, and, where that is nothing, a rehearsal of the start."""

from typing import Any

from harness.config import RunConfig
from harness.data.account import Account
from harness.data.assemble import data_module
from harness.data.config import OnError, Truncation
from harness.data.template.encoder import OVER_MAX_LENGTH
from harness.doctor.decoding import number_broken
from harness.doctor.split import Split
from harness.doctor.wording import counted
from harness.errors import UserError, reject
from harness.freeze.component import Component
from harness.model.attention import check_available
from harness.model.component import names
from harness.model.loading import skeleton
from harness.model.processor import Processor
from harness.optim.schedule import ScheduleName
from harness.registry import build
from harness.trainer.standard import pick_accelerator
from harness.tuner.target import ALL_LINEAR


def of_settings(config: RunConfig) -> list[str]:
    """Returns what this machine can not do of what the config asks for."""
    found = []
    for check in (lambda: pick_accelerator(config.trainer), lambda: check_available(config.model.attention)):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def of_data(config: RunConfig, splits: list[Split], decoded: dict[str, dict[str, Any]]) -> list[str]:
    """Returns why the rows can not be trained on.

    Args:
        config: As given, bad rows not forgiven.
        splits: What was read.
        decoded: What `decoding.measure` found of each.
    """
    found = []
    for split in splits:
        found += _of_rows(config, split, decoded[split.name])
    if not any(split.name == "train" for split in splits):
        found.append("data.train has no rows")
    return found + _without_validation(config, splits) + _without_images(config, splits)


def rehearse(config: RunConfig, processor: Processor) -> list[str]:
    """Prepares the data just as training does; returns what it would end with."""
    try:
        data_module(config, processor).prepare()
    except UserError as error:
        return [str(error)]
    return []


def _of_rows(config: RunConfig, split: Split, decoded: dict[str, Any]) -> list[str]:
    account, found = split.account, []
    stops = config.data.on_error is OnError["raise"]
    if account.skipped.total and stops:
        remedy = "mend or remove them, or set data.on_error=skip"
        found.append(
            f"{split.name}: {counted(account.skipped.total, 'row')} can not be used: {account.skipped.text()}; {remedy}"
        )
    long = account.dropped.counts[OVER_MAX_LENGTH]
    if long and config.data.truncation is Truncation["raise"]:
        first = account.dropped.first[OVER_MAX_LENGTH][0]
        remedy = "raise data.max_length or set another data.truncation"
        found.append(
            f"{split.name}: {counted(long, 'row')} over max_length, and data.truncation=raise ({first}); {remedy}"
        )
    if not len(split.samples):
        found.append(f"no {split.name} row is left of {account.rows:,}: {_left_out(account)}")
    if (broken := number_broken(decoded)) and stops:
        first = next(iter(decoded["broken"].values()))["first"][0]
        what = counted(broken, "image or video", "images and videos")
        remedy = "replace them, or set data.on_error=skip"
        found.append(f"{split.name}: {what} can not be decoded ({first}); {remedy}")
    return found


def _without_validation(config: RunConfig, splits: list[Split]) -> list[str]:
    if any(split.name == "val" for split in splits):
        return []
    found = []
    if config.data.generation.enabled:
        found.append(str(reject("data.generation.enabled", "true", "there are no validation rows to answer")))
    for key in ("load_best", "val_every_steps"):
        if value := getattr(config.trainer, key):
            found.append(str(reject(f"trainer.{key}", value, "there are no validation rows; give data.val")))
    if config.optim.schedule.name is ScheduleName.reduce_lr_on_plateau:
        remedy = "there are no validation rows; give data.val"
        found.append(str(reject("optim.schedule.name", "reduce_lr_on_plateau", remedy)))
    return found


def _without_images(config: RunConfig, splits: list[Split]) -> list[str]:
    """Says what `check_reachable` will say once the model is there: parts that should train and see nothing."""
    train = next((split for split in splits if split.name == "train"), None)
    blind = build("freeze", config.freeze, skeleton(config.model)).components() - {Component.llm}
    # Modules named one by one may all lie in the LLM; only the model could tell.
    everywhere = ALL_LINEAR in getattr(config.tuner, "target_modules", [ALL_LINEAR])
    if train is None or train.streamed or not blind or not everywhere or train.account.visual_tokens:
        return []
    listed = names(sorted(blind, key=lambda component: component.value))
    return [f"{listed}: should train, but no training row has an image; freeze it, freeze=vit_aligner"]


def _left_out(account: Account) -> str:
    return ", ".join(filter(None, (account.skipped.text(), account.dropped.text()))) or "there are none"
