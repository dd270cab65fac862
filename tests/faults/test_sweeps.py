"""Sweeps whose trials or launcher end badly, and a study through SLURM, as they are measured."""

import os
import shutil

import pytest

from tests.sweep import local_slurm

pytestmark = [pytest.mark.faults, pytest.mark.slow]
missing = [name for name in (*local_slurm.PROGRAMS, "sbatch") if shutil.which(name) is None]


def test_of_twelve_eight_are_done_once_and_four_are_reported(scripts, tmp_path):
    figures = scripts("mixed_sweep").measure(tmp_path, seed=1)
    assert figures["wrong"] == [] and (figures["done"], figures["reported"]) == (8, 4)


@pytest.mark.xdist_group("slurm")
@pytest.mark.skipif(bool(missing) or os.geteuid() != 0, reason="needs slurm-wlm and munge, as root")
def test_a_study_that_is_preempted_comes_to_what_the_pool_does(scripts, tmp_path, monkeypatch):
    study = scripts("slurm_study")
    monkeypatch.setattr(study, "GRID", (*study.ONE[:-1], "seed=1,2"))
    folder = study.Path(f"/tmp/slurm_{os.getpid()}_study")
    for name, value in local_slurm.up(folder).items():
        monkeypatch.setenv(name, value)
    try:
        figures = study.measure(tmp_path, preemptions=2)
    finally:
        local_slurm.down(folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert figures["wrong"] == [] and figures["preempted"] >= 1
