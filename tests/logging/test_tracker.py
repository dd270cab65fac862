import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from harness.logging.tracker import finish, log_row


class Recorder(DummyLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.status: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.status.append(status)


def test_a_row_goes_to_every_tracker_at_its_step() -> None:
    loggers = [Recorder(), Recorder()]
    log_row(loggers, {"step": 7, "train/loss": 0.5})
    assert [logger.rows for logger in loggers] == [[(7, {"train/loss": 0.5})]] * 2


@pytest.mark.parametrize(("code", "status"), [(0, "success"), (1, "failed"), (143, "failed")])
def test_the_exit_code_says_how_it_ended(code: int, status: str) -> None:
    logger = Recorder()
    finish([logger], code)
    assert logger.status == [status]


def test_other_ranks_finish_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = Recorder()
    finish([logger], 0)
    assert logger.status == []
