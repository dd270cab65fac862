"""Memory, open files and threads of a process that trains stay as they are."""

import pytest


@pytest.mark.faults
@pytest.mark.slow
def test_a_short_soak_is_flat(scripts):
    found = scripts("soak").soak(minutes=0.5, interval_s=0.5, skip=0.3)
    assert found["saves"] >= 5 and found["validations"] >= 5
    assert found["files"]["last"] <= found["files"]["first"] and found["threads"]["last"] <= found["threads"]["first"]
    assert found["rss_mib"]["last"] - found["rss_mib"]["first"] < 8


@pytest.mark.faults
def test_growth_is_seen(scripts):
    soak = scripts("soak")
    leaks = soak.trend([(float(i), 500.0 + i) for i in range(100)], 0.1)
    assert not soak.is_flat("rss_mib", leaks) and leaks["slope_per_hour"] == pytest.approx(3600)
    flat = soak.trend([(float(i), 500.0 + i % 2) for i in range(100)], 0.1)
    assert soak.is_flat("rss_mib", flat)
    assert not soak.is_flat("threads", {"first": 3.0, "last": 4.0})
