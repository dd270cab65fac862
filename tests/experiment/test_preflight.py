"""Before torch is imported: what is wrong for certain is refused, and nothing that a run could use."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from harness.data.row_error import RowError
from harness.errors import UserError
from harness.experiment import preflight
from harness.experiment.preflight import look
from harness.model.checkpoint_path import resolve, tensor_names

GOOD = {"query": "<image>what?", "response": "that", "images": ["a.png"]}
BAD = GOOD | {"images": ["b.png"]}


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def write(*lines, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("targets", ["[q_proj]", "[mlp.up_proj,o_proj]", "[all-linear]", "[attn.qkv,linear_fc1]"])
def test_targets_that_the_model_has_pass(make_config, targets):
    look(make_config(f"tuner.target_modules={targets}"))


def test_what_names_nothing_is_refused(make_config, monkeypatch):
    with pytest.raises(UserError, match=r"target_modules=mlp\.up_porj: .* did you mean up_proj\?"):
        look(make_config("tuner.target_modules=[q_proj,mlp.up_porj]"))
    with pytest.raises(UserError, match=r"trainer\.weights_from=nowhere: no such folder"):
        look(make_config("trainer.weights_from=nowhere"))
    with pytest.raises(UserError, match=r"memory/quant=hqq: hqq is not installed"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        look(make_config("memory/quant=hqq"))


@pytest.mark.parametrize(
    ("driver", "amd", "fits"), [("libc.so.6", False, True), ("no.so", True, True), ("no.so", False, False)]
)
def test_a_gpu_needs_a_driver(make_config, monkeypatch, tmp_path, driver, amd, fits):
    monkeypatch.setattr(preflight, "_DRIVER", driver)
    monkeypatch.setattr(preflight, "_AMD", tmp_path if amd else tmp_path / "kfd")
    config = make_config("trainer.accelerator=gpu")
    if fits:
        look(config)
    else:
        with pytest.raises(UserError, match="torch sees no GPU here"):
            look(config)


def test_the_first_row_is_read_where_the_run_would_end_with_it(make_config, rows):
    good, bad = rows(GOOD, BAD), rows(BAD, GOOD, name="bad.jsonl")
    look(make_config("data=files", f"data.train={good}"))
    for overrides in ([f"data.train={bad}"], [f"data.train={good}", f"data.val={bad}"]):
        with pytest.raises(RowError, match=r"bad\.jsonl:1: image 'b\.png' does not exist"):
            look(make_config("data=files", *overrides))


@pytest.mark.parametrize(
    "overrides", [["data.on_error=skip"], ["data.streaming=true", "trainer.max_steps=1"], ["data.weights=[1,2]"]]
)
def test_a_row_that_need_not_come_up_is_left_alone(make_config, rows, overrides):
    paths = f"data.train=[{rows(BAD, GOOD)},{rows(BAD, GOOD, name='b.jsonl')}]"
    look(make_config("data=files", paths, *overrides))
    look(make_config("data=files", f"data.train='{rows(BAD, GOOD)}#1'"))
    with pytest.raises(UserError, match="no such file"):
        look(make_config("data=files", "data.train=[nowhere.jsonl,elsewhere.jsonl]", *overrides))


def test_names_come_from_the_header_or_the_index_and_nothing_from_what_is_broken(tmp_path):
    tiny = resolve("harness:tiny")
    names = tensor_names(shutil.copytree(tiny, tmp_path / "tiny"))
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in names
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"\xff" * 9)
    assert tensor_names(tmp_path / "tiny") == [] == tensor_names(tmp_path)
    (tmp_path / "tiny" / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": "x"}}')
    assert tensor_names(tmp_path / "tiny") == ["a.weight"]


def test_none_of_it_imports_torch(rows):
    code = (
        "import sys; from harness import registry; registry.load(); from harness.compose import compose_config;"
        "from harness.config import to_run_config; from harness.experiment.preflight import look;"
        f"look(to_run_config(compose_config(['data=files', 'data.train={rows(GOOD)}'])));"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
