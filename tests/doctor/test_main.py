import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.doctor import __main__ as command
from harness.doctor import machine

CHECKPOINT = Path(harness.__file__).parent / "model" / "tiny_checkpoint"


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


class TestWithoutOverrides:
    def test_machine_alone_is_looked_at(self, doctor):
        told = doctor()
        assert told.code == 0 and told.err == ""
        assert "import lightning   works" in told.out and "this machine can train" in told.out
        assert last_line(told.out) == f"doctor: {told.folder}"
        assert told.report["machine"]["cores"] == 2 and told.report["splits"] == {}
        assert not (told.folder / "doctor.png").exists()

    def test_machine_that_can_not_train_is_exit_code_2(self, doctor, monkeypatch):
        broken = machine.measure() | {"lightning": {"error": "RuntimeError: nms"}, "torchvision": "0.26.0"}
        monkeypatch.setattr(machine, "measure", lambda: broken)
        told = doctor()
        assert told.code == 2 and "error: training would fail: lightning can not be imported" in told.err
        assert last_line(told.out) == f"doctor: {told.folder}"
        # The data side imports Lightning, so it is not touched.
        assert doctor("data=digits").code == 2

    def test_folder_is_named_after_the_time(self, tmp_path, monkeypatch, capsys, doctor):
        assert command.main([]) == 0
        folder = Path(last_line(capsys.readouterr().out).removeprefix("doctor: "))
        assert folder.parent == Path("outputs/doctor") and (tmp_path / folder / "doctor.json").is_file()


class TestGoodData:
    def test_digits_can_train(self, doctor):
        told = doctor("data=digits", "data.train_rows=40")
        assert told.code == 0 and told.err == ""
        assert "training could start" in told.out and last_line(told.out) == f"doctor: {told.folder}"
        assert "[image 4x4 patches = 4 tokens]" in told.out and "⟦" in told.out
        assert (told.folder / "doctor.png").stat().st_size > 10_000
        report = told.report
        assert report["failures"] == [] and report["batching"]["steps_per_epoch"] == 3
        assert report["splits"]["train"]["tokens"]["spread"]["tokens"]["total"] == 40 * 23
        assert report["splits"]["val"]["account"]["rows"] == 360
        assert report["config"]["data"]["train_rows"] == 40

    def test_no_weights_are_read(self, doctor, tmp_path):
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(CHECKPOINT, checkpoint, ignore=shutil.ignore_patterns("*.safetensors"))
        assert not list(checkpoint.glob("*.safetensors")) and list(CHECKPOINT.glob("*.safetensors"))
        told = doctor("model=qwen3_vl", f"model.path={checkpoint}", "data=digits", "data.train_rows=8")
        assert told.code == 0, told.err

    def test_new_tokens_and_a_longer_context_are_seen(self, doctor, write_rows, row):
        train, alone = write_rows(row("what is a <cat>?")), "model.train_new_tokens=true"
        length = ["model.rope_scaling=yarn", "model.max_model_len=8192"]
        tokens = [
            doctor("data=jsonl", f"data.train={train}", *more).report["splits"]["train"]["tokens"]["spread"]["tokens"]
            for more in ([], ['model.new_special_tokens=["<cat>"]', alone, *length])
        ]
        assert tokens[1]["total"] < tokens[0]["total"]
        for wrong, message in (("<|im_end|>", "has this token already"), ("im_start", "stands in the chat template")):
            told = doctor("data=digits", f'model.new_special_tokens=["{wrong}"]', alone)
            assert told.code == 2 and message in told.err
        told = doctor("data=digits", "model.rope_scaling=yarn", "model.max_model_len=100")
        assert told.code == 2 and "takes 4,096 tokens already" in told.err

    def test_findings_are_listed_and_do_not_change_the_exit_code(self, doctor, write_rows, write_image, row):
        image = write_image("a.png")
        boxes = row('{"bbox_2d": [1, 2, 3000, 4]}', image)
        train = write_rows(row("a"), row("a"), boxes, row("b", rejected_response="c"), row("word " * 300))
        val = write_rows(row("a"), row("x", write_image("b.png")), name="val.jsonl")
        told = doctor("data=files", f"data.train={train}", f"data.val={val}", "data.max_length=200")
        assert told.code == 0, told.err
        findings = [line.removeprefix("finding: ") for line in told.out.splitlines() if line.startswith("finding: ")]
        assert findings == told.report["findings"]
        for expected in (
            "train: 1 of 5 rows dropped: 1 over max_length",
            "train: 1 row with a preference (rejected answer), which supervised fine-tuning ignores",
            "train: boxes are likely absolute pixels (",
            "train: 1 row is the same as an earlier one (",
            "val: 1 row is in train too, so it measures what was learnt by heart (",
            "val: 1 image or video is in train too (",
        ):
            assert any(finding.startswith(expected) for finding in findings), expected
        assert len(findings) == 6

    def test_fates_name_the_first_rows(self, doctor, write_rows, row):
        path = write_rows(row("a"), "{", *[row("word " * 300)] * 12, row("b", "gone.png"))
        told = doctor("data=files", f"data.train={path}", "data.on_error=skip", "data.max_length=200")
        lines = [line.strip() for line in told.out.splitlines()]
        assert "train: 1 of 15 rows used, 1 sample" in lines
        assert "1 skipped: missing image" in lines and any(f"{path}:15: image 'gone.png'" in line for line in lines)
        assert "12 dropped: over max_length" in lines and f"{path}:12" in told.out and f"{path}:13" not in told.out

    def test_decode_takes_all_images(self, doctor, write_rows, write_image, damage, row, monkeypatch):
        from harness.doctor import decoding

        monkeypatch.setattr(decoding, "SAMPLE", 0)
        image = write_image("a.png", 200, 200)
        damage(image)
        train = f"data.train={write_rows(row('a', image))}"
        assert doctor("data=files", train).code == 0
        told = doctor("--decode", "data=files", train)
        assert told.code == 2 and "1 image or video can not be decoded" in told.err

    def test_stream_says_so(self, doctor, write_rows, row):
        told = doctor(
            "data=files", f"data.train={write_rows(row(), row('b'))}", "data.streaming=true", "trainer.max_steps=3"
        )
        assert told.code == 0, told.err
        assert "finding: train: a stream, of which 2 rows were looked at" in told.out


class TestMistakes:
    def test_all_reasons_stand_in_one_message_at_the_end(self, doctor, write_rows, row):
        train = write_rows(row(), "{", row("word " * 300))
        limits = ("data.max_length=200", "data.truncation=raise", "trainer.val_every_steps=2")
        told = doctor("data=files", f"data.train={train}", *limits)
        assert told.code == 2 and "Traceback" not in told.err
        reasons = told.err.removeprefix("error: training would fail: ").rstrip().split("\n  and: ")
        assert [reason.partition(":")[0] for reason in reasons] == ["train", "train", "trainer.val_every_steps=2"]
        assert reasons == told.report["failures"]
        assert last_line(told.out) == f"doctor: {told.folder}" and "training could start" not in told.out

    def test_rehearsal_has_the_last_word(self, doctor, write_rows, row, monkeypatch):
        from harness.doctor import verdict

        monkeypatch.setattr(verdict, "of_data", lambda *_: [])
        told = doctor("data=files", f"data.train={write_rows(row(), '{')}")
        assert told.code == 2 and "train.jsonl:2: not JSON" in told.err

    def test_missing_file_is_told_behind_the_machine(self, doctor):
        told = doctor("data=files", "data.train=nowhere.jsonl")
        assert told.code == 2 and "error: training would fail: data.train=nowhere.jsonl: no such file" in told.err
        assert "import lightning" in told.out and told.report["failures"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tuner.rnak=4"], "tuner.rnak=4: no such key. Did you mean tuner.rank?"),
            (["data=files"], "data.train=null: give a file"),
            (["tuner.rank=0"], "tuner.rank=0: must be 1 or more"),
            (["--bogus"], "unrecognized arguments: --bogus; see python -m harness.doctor --help"),
            (["--decode"], "--decode decodes the images of a run: give its overrides too"),
        ],
    )
    def test_command_lines_that_are_refused(self, doctor, arguments, message):
        told = doctor(*arguments)
        assert told.code == 2 and told.err.startswith(f"error: {message}") and told.out == ""
        assert not told.folder.exists()

    def test_folder_that_can_not_be_made(self, doctor, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert command.main(["--out", str(tmp_path / "file" / "x")]) == 2
        assert "the folder can not be made: Not a directory" in capsys.readouterr().err


def test_help_and_flags_between_overrides(capsys):
    assert command.main(["data=digits", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--decode" in out and "Exit code 0" in out and "outputs/doctor/<time>" in out


def test_command_line_is_refused_in_a_second_and_without_torch():
    # A child process, since this one has torch loaded.
    code = (
        "import sys; from harness.doctor.__main__ import main; code = main(['tuner.rank=0']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr == "error: tuner.rank=0: must be 1 or more\n"
