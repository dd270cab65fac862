"""`+sweep=<name>`: a study of `sweeps/`, a question with the trials that answer it, as overrides of a multirun.

A study is no config group: what it says of the sweep is no part of a run's config, and what it says of the trials is an
override like those typed behind it, which win. So every sweeper reads it, and each trial's command stands alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import compose, registry
from harness.errors import UserError, reject
from harness.trainer.standard import METRICS, badness
from harness.yaml_file import read_yaml

STUDIES = registry.CONF.parent / "sweeps"
"""The folder of shipped studies: beside conf/, in an installed wheel and in a checkout."""
_KEY, _DIR = "sweep", "hydra.sweep.dir"


@dataclass(kw_only=True, slots=True)
class Study:
    """A file of `sweeps/`."""

    name: str = ""
    """The file's."""
    question: str = ""
    """What the study is to answer."""
    base: list[str] = field(default_factory=list)
    """Overrides of every trial."""
    axes: dict[str, Any] = field(default_factory=dict)
    """Values by key, as a list or in Hydra's words: `4,8`, `tag(log, interval(1e-5, 1e-3))`."""
    methods: dict[str, list[str]] = field(default_factory=dict)
    """Overrides that belong together, by a name; each combination of the axes is run with each of them."""
    seeds: list[int] = field(default_factory=list)
    """Each trial is run with each of them; empty for the config's own."""
    metric: str = "val/loss"
    """That decides; becomes `trainer.monitor`."""
    budget: dict[str, Any] = field(default_factory=dict)
    """What is held equal, in words for the report: `trials: 40`, `trainable_parameters: 52224`."""
    trial_seconds: float | None = None
    """Guess of what one trial takes on the study's own model."""

    def __post_init__(self) -> None:
        if not self.question:
            raise UserError(f"sweep={self.name}: has no question; write what it is to answer")
        if not self.axes and not self.methods:
            raise UserError(f"sweep={self.name}: neither axes nor methods: nothing would differ among its trials")
        if self.metric not in METRICS:
            raise UserError(f"sweep={self.name}: metric={self.metric}: must be one of {', '.join(METRICS)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"sweep={self.name}: seeds={self.seeds}: holds one twice")

    @property
    def arms(self) -> list[list[str]]:
        """Overrides of each method; one arm without any where there are none."""
        return list(self.methods.values()) or [[]]

    @property
    def keys(self) -> list[str]:
        """Keys that vary, the seed last."""
        of_methods = [item.key_or_group for arm in self.methods.values() for item in compose.parse(arm)]
        return list(dict.fromkeys([*of_methods, *self.axes, *(["seed"] if self.seeds else [])]))

    def overrides(self, given: Sequence[str]) -> list[str]:
        """Returns the overrides of the multirun: the study's, without those that are given, and then these."""
        typed = {item.key_or_group: item for item in compose.parse(given)}
        model = typed.get("model")
        one_model = None if model is None or model.is_sweep_override() else str(model.get_value_element_as_str())
        own = [f"{_DIR}={self.folder(one_model)}", f"trainer.monitor={self.metric}", *self.base]
        own += [f"{key}={_sweep_text(values)}" for key, values in self.axes.items()]
        own += [f"seed={_sweep_text(self.seeds)}"] if self.seeds else []
        return [item for item in own if compose.parse([item])[0].key_or_group not in typed] + list(given)

    def folder(self, model: str | None) -> str:
        """Returns where the study's runs are kept: on another model than its own, in a folder of that model's."""
        return f"outputs/multirun/{self.name}{f'_{model}' if model is not None else ''}"

    def write(self, path: Path) -> None:
        """Writes what the report has to know."""
        content = {
            "name": self.name,
            "question": self.question,
            "metric": self.metric,
            "mode": "min" if badness(self.metric, 1.0) > 0 else "max",
            "seeds": self.seeds,
            "axes": self.keys,
            "methods": self.methods,
            "budget": self.budget,
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def apply(overrides: Sequence[str], *, multirun: bool) -> tuple[Study | None, list[str]]:
    """Takes `+sweep=<name>` out of a command line, and puts the study's overrides in its place.

    Raises:
        UserError: There is no such study, its file is wrong, or it is asked of a single run.
    """
    asked = [item for item in overrides if item.lstrip("+").partition("=")[0] == _KEY]
    if not asked:
        return None, list(overrides)
    name = asked[-1].partition("=")[2]
    if not multirun:
        raise reject(_KEY, name, "a study has many trials: put -m in front of it")
    study = load(name)
    return study, study.overrides([item for item in overrides if item not in asked])


def names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load(name: str) -> Study:
    """Reads a study.

    Args:
        name: Of a shipped one, or the path of a YAML file.

    Raises:
        UserError: There is none, or its file is wrong.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    if not path.is_file():
        raise reject(_KEY, name, f"no such study; known: {', '.join(names())}; or give the path of a .yaml file")
    content = read_yaml(path)
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: holds no mapping of a study's keys")
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), content, {"name": path.stem}))
        assert isinstance(study, Study)
        texts = [*study.base, *itertools.chain(*study.methods.values())]
        if not all(isinstance(item, str) for item in texts):
            raise UserError("base and methods hold overrides, texts of the form key=value")
        compose.parse([*study.overrides([]), *texts])
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {' '.join(str(error).splitlines()[:2])}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return study


def _sweep_text(values: Any) -> str:
    return ",".join(map(str, values)) if isinstance(values, list) else str(values)
