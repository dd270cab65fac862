import re
import tomllib
from pathlib import Path

import pytest

import harness
from harness.doctor import package
from harness.doctor.package import PACKAGES, Package

PROJECT = tomllib.loads((Path(harness.__file__).parents[1] / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize("listed", PACKAGES, ids=lambda listed: listed.name)
def test_remedy_installs_the_package(listed: Package):
    if listed.extra is not None:
        assert listed.name in names(PROJECT["optional-dependencies"][listed.extra])
    elif listed.required:
        assert listed.name in names(PROJECT["dependencies"])
    else:
        assert listed.command is not None


def test_every_extra_is_listed_and_the_distribution_is_ours():
    assert {listed.extra for listed in PACKAGES} - {None} == set(PROJECT["optional-dependencies"]) - {"dev"}
    assert PROJECT["name"] == package.DISTRIBUTION


def test_missing_packages_are_shown_with_their_extra_and_present_ones_without(monkeypatch, capsys):
    monkeypatch.setattr(package, "version", lambda name: None if name == "av" else "1.0")
    package.show(package.measure())
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[3:]}
    assert "missing" in lines["av"] and "pip install 'qwen3-vl-harness[video]'" in lines["av"]
    assert "pip" not in lines["wandb"]


def test_only_required_packages_are_a_problem(monkeypatch):
    monkeypatch.setattr(package, "version", lambda name: None if name in ("av", "peft", "flash-attn-4") else "1.0")
    assert package.problems(package.measure()) == ["the package peft is not installed: pip install qwen3-vl-harness"]


def test_version_of_a_missing_distribution_is_none():
    assert package.version("no-such-distribution-at-all") is None
