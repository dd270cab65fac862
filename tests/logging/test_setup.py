import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers.utils import logging as transformers_logging

from harness.logging.setup import FILE_ONLY, QUIET, setup_logging

log = logging.getLogger("harness.somewhere")

LIBRARIES = (*QUIET, "lightning", "lightning.pytorch", "lightning.fabric")


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    libraries = {name: logging.getLogger(name) for name in LIBRARIES}
    states = {name: (logger.level, logger.propagate, list(logger.handlers)) for name, logger in libraries.items()}
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, (was, propagate, handlers) in states.items():
        libraries[name].setLevel(was)
        libraries[name].propagate = propagate
        libraries[name].handlers[:] = handlers


def test_rank_0_says_it_shortly_and_writes_it_down_with_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path, 0)
    log.info("loading %s", "weights")
    log.warning("slow disk")
    log.debug("detail")
    assert capsys.readouterr().err == "loading weights\nwarning: slow disk\n"
    first, second = (tmp_path / "train.log").read_text().splitlines()
    assert first[:2] == "20" and first.endswith(" INFO harness.somewhere: loading weights")
    assert second.endswith(" WARNING harness.somewhere: slow disk")


def test_other_ranks_write_into_a_file_of_their_own_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, 3)
    log.info("loading")
    log.error("no memory")
    assert capsys.readouterr().err == ""
    assert [line.split(": ")[-1] for line in (tmp_path / "ranks" / "rank_3.log").read_text().splitlines()] == [
        "loading",
        "no memory",
    ]
    assert not (tmp_path / "train.log").exists()


def test_a_second_call_does_not_double_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        setup_logging(tmp_path, 0)
    log.info("once")
    assert capsys.readouterr().err == "once\n"
    assert len((tmp_path / "train.log").read_text().splitlines()) == 1


def test_the_next_run_writes_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        setup_logging(tmp_path / name, 0)
        log.info("run %s", name)
    assert [(tmp_path / name / "train.log").read_text().count("run") for name in ("a", "b")] == [1, 1]


def test_a_resumed_run_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").write_text("before\n")
    setup_logging(tmp_path, 0)
    log.info("after")
    first, second = (tmp_path / "train.log").read_text().splitlines()
    assert first == "before" and second.endswith("after")


def test_python_warnings_are_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old option", stacklevel=1)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("warning: ") and shown[0].endswith("UserWarning: an old option")
    assert "UserWarning: an old option" in (tmp_path / "train.log").read_text()


def test_tracebacks_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, 0)
    try:
        raise KeyError("gone")
    except KeyError:
        log.exception("it broke")
    assert "KeyError: 'gone'" in (tmp_path / "train.log").read_text()
    assert capsys.readouterr().err.startswith("error: it broke\nTraceback")


def test_a_record_can_keep_off_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, 0)
    log.info("for the file", extra={FILE_ONLY: True})
    assert capsys.readouterr().err == ""
    assert "for the file" in (tmp_path / "train.log").read_text()


def test_libraries_keep_their_warnings_and_lose_their_chatter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path, 0)
    rank_zero_info("GPU available: False")
    for name in ("httpx", "matplotlib.font_manager"):
        logging.getLogger(name).info("chatter of %s", name)
    transformers_logger = transformers_logging.get_logger("transformers.modeling_utils")
    transformers_logger.info("chatter of transformers")
    transformers_logger.warning("weights are missing")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        rank_zero_warn("few workers")
    text = (tmp_path / "train.log").read_text()
    assert "chatter" not in text and "GPU available" not in text
    assert text.count("weights are missing") == text.count("UserWarning: few workers") == 1
    assert capsys.readouterr().err.count("weights are missing") == 1
