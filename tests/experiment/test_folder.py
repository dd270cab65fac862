import pytest

from harness.experiment.folder import RunFolder


@pytest.mark.parametrize("mark, group", [("multirun.yaml", "s"), ("study.yaml", "s"), ("config.yaml", None)])
def test_a_trial_is_grouped_by_its_sweep(tmp_path, mark, group):
    run = RunFolder(tmp_path / "s" / "0")
    run.path.mkdir(parents=True)
    (tmp_path / "s" / mark).touch()
    assert run.group == group
