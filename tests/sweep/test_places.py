"""How a machine is divided among trials."""

import sys

import pytest

from harness.sweep.places import Places, visible_gpus


def test_no_two_trials_have_one_gpu():
    places = Places(jobs=9, gpus=["4", "5", "7"])
    assert places.take(2) == ["4", "5"]
    assert places.take(2) is None
    assert places.take(1) == ["7"]
    assert places.take(1) is None
    places.give_back(["4", "5"])
    assert places.take(1) == ["4"]


def test_small_trials_share_a_gpu_where_they_may():
    places = Places(jobs=9, gpus=["0", "1"], per_gpu=2)
    assert [places.take(1) for _ in range(5)] == [["0"], ["1"], ["0"], ["1"], None]


def test_jobs_bound_them_even_where_there_is_room():
    places = Places(jobs=1, gpus=["0", "1"])
    assert places.take(1) == ["0"] and places.take(1) is None


def test_a_trial_that_asks_for_more_gpus_than_there_are_starts_to_say_so():
    assert Places(jobs=1, gpus=["0"]).take(2) == ["0"]


@pytest.mark.parametrize(
    ("cores", "jobs", "gpus", "devices", "trials", "expected"),
    [
        (2, None, 0, 1, 9, 2),
        (64, None, 0, 1, 99, 8),
        (64, None, 0, 2, 99, 4),
        (64, 20, 0, 1, 99, 20),
        (64, None, 8, 2, 99, 4),
        (64, None, 8, 2, 3, 3),
        (1, None, 0, 4, 9, 1),
    ],
)
def test_jobs_follow_from_the_machine(monkeypatch, cores, jobs, gpus, devices, trials, expected):
    monkeypatch.setattr("harness.sweep.places.usable", lambda: cores)
    names = [str(number) for number in range(gpus)]
    assert Places.of_machine(jobs, 1, names, devices, trials).jobs == expected


def test_cores_are_shared_by_jobs_and_their_processes():
    places = Places(jobs=4, cores=32)
    assert places.variables([], 2, {}) == {"OMP_NUM_THREADS": "4"}
    assert places.variables(["3", "5"], 2, {"OMP_NUM_THREADS": "1"}) == {"CUDA_VISIBLE_DEVICES": "3,5"}


def test_gpus_keep_the_names_they_were_given(monkeypatch):
    class Cuda:
        device_count = staticmethod(lambda: 2)

    monkeypatch.setitem(sys.modules, "torch", type("Torch", (), {"cuda": Cuda}))
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-aa, GPU-bb"}) == ["GPU-aa", "GPU-bb"]
    assert visible_gpus({}) == ["0", "1"]
