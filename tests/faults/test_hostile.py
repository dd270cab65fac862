"""Files with code in them, and rows that reach outside `data.root`, given to real runs."""

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize("only", ["root", "rows", "checkpoint", "call"])
def test_nothing_runs_and_nothing_outside_is_opened(scripts, tmp_path, only):
    figures = scripts("hostile_files").measure(tmp_path, only)
    assert figures["runs"] + figures["root"] > 2 and figures["wrong"] == []


def test_a_look_outside_would_be_seen(scripts, tmp_path):
    (tmp_path / "secret").write_text("x")
    with scripts("hostile_files").watched(tmp_path) as opened:
        (tmp_path / "secret").stat()
        assert opened == []
        (tmp_path / "secret").read_text()
    assert opened == ["secret"]


def test_code_that_ran_would_be_seen(scripts, tmp_path):
    import pickle

    hostile = scripts("hostile_files")
    payload = hostile.Payload(tmp_path / "ran")
    pickle.loads(pickle.dumps(payload))
    assert payload.trace.exists()
    payload.trace.rmdir()
    exec(payload.source)
    assert payload.trace.exists()
