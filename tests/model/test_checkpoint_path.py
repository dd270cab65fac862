import json

import pytest

from harness.errors import UserError
from harness.model.checkpoint_path import resolve


def test_hub_ids_pass_and_the_shipped_checkpoint_is_found():
    assert resolve("Qwen/Qwen3-VL-4B-Instruct") == "Qwen/Qwen3-VL-4B-Instruct"
    assert resolve("harness:tiny").endswith("tiny_checkpoint")


def test_wrong_folders_are_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        resolve(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"is not JSON .*utf-8"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="is a None checkpoint"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="is a 'llama' checkpoint, not a Qwen3-VL"):
        resolve(str(tmp_path))
    with pytest.raises(UserError, match="known: harness:tiny"):
        resolve("harness:huge")
