from types import SimpleNamespace

from harness.experiment.folder import RunFolder
from harness.experiment.restore import progression_so_far


def test_a_checkpoint_whose_rows_were_lost_with_the_power_goes_on(make_config, tmp_path):
    checkpointer = SimpleNamespace(step_of=lambda name: None)
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1, "train/loss": 2.0}\n')
    assert progression_so_far(make_config(), folder, checkpointer, 1).train_loss == 2.0
    folder.metrics.write_text("")
    assert progression_so_far(make_config(), folder, checkpointer, 1).train_loss is None
