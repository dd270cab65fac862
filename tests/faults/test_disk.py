"""A full disk: no checkpoint that was whole is lost, and the run does what it was told to."""

import pytest

pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_a_run_that_goes_on_without_a_checkpoint(faults, bench, name):
    found = faults.without_room(bench, "limit", "continue", name)
    assert found["ok"], found


@pytest.mark.parametrize("policy", ["continue", "stop"])
@pytest.mark.parametrize("kind", ["foreseen", "unforeseen", "limit"])
def test_each_way_to_be_full(faults, bench, name, kind, policy):
    if kind != "limit" and not faults.can_mount(bench.home):
        pytest.skip("a small file system needs root")
    found = faults.without_room(bench, kind, policy, name)
    assert found["ok"], found
