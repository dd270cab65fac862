"""How cores are shared out."""

import pytest

from harness import cores


@pytest.mark.parametrize(("processes", "expected"), [(1, "12"), (4, "3"), (5, "2"), (40, "1")])
def test_each_process_gets_its_share_and_at_least_one(monkeypatch, processes, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores.threads(12, processes) == {"OMP_NUM_THREADS": expected}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cores.threads(12, processes) == {}


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("150000 100000", 1), ("50000 100000", 1), (None, 8)]
)
def test_a_quota_counts(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert cores.usable() == expected
