import json
import shutil

import pytest

from harness.data.config import VideoConfig
from harness.data.media.image_budget import set_video_budget, video_bounds
from harness.errors import UserError
from harness.model.processor import load_processor

NESTED, OWN = "processor_config.json", "video_preprocessor_config.json"
SIZE = {"shortest_edge": 4096, "longest_edge": 25_165_824}
CONFIG = VideoConfig(fps=1.0, min_frames=2, max_frames=64, max_tokens=500)


@pytest.fixture
def checkpoint(tmp_path, make_config):
    """A copy of the tiny checkpoint without weights, and its config."""
    folder = tmp_path / "checkpoint"
    source = load_processor(make_config().model).path
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, make_config(f"model.path={folder}").model


def _rewrite(path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def test_video_settings_in_force_are_saved_where_the_checkpoint_nests_them(checkpoint, tmp_path):
    processor = load_processor(checkpoint[1])
    assert processor.video_settings["video_processor_type"] == "Qwen3VLVideoProcessor"
    set_video_budget(processor.video_settings, CONFIG)
    processor.save(tmp_path)
    saved = json.loads((tmp_path / NESTED).read_text())["video_processor"]
    assert saved["size"] == {"shortest_edge": 128 * 32 * 32, "longest_edge": 500 * 2048}
    assert (saved["fps"], saved["min_frames"], saved["max_frames"]) == (1.0, 2, 64)
    assert saved["image_mean"] == [0.5, 0.5, 0.5]
    assert not (tmp_path / OWN).exists()


def test_video_settings_in_a_file_of_their_own_are_read_and_saved_there(checkpoint, tmp_path):
    folder, config = checkpoint
    (folder / NESTED).unlink()
    _rewrite(folder / OWN, size=SIZE, patch_size=16, merge_size=2, temporal_patch_size=2)
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 16}))
    processor = load_processor(config)
    assert video_bounds(processor.video_settings, VideoConfig()) == (4096, 25_165_824)
    set_video_budget(processor.video_settings, CONFIG)
    processor.save(tmp_path)
    saved = json.loads((tmp_path / OWN).read_text())
    assert saved["size"] == {"shortest_edge": 4096, "longest_edge": 500 * 2048}
    assert (saved["fps"], saved["patch_size"]) == (1.0, 16)


def test_nested_settings_go_before_a_file_of_their_own(checkpoint, tmp_path):
    folder, config = checkpoint
    _rewrite(folder / OWN, size=SIZE)
    assert "size" not in load_processor(config).video_settings
    _rewrite(folder / NESTED, video_processor={"size": {"shortest_edge": 1, "longest_edge": 2}})
    assert load_processor(config).video_settings == {"size": {"shortest_edge": 1, "longest_edge": 2}}


def test_a_checkpoint_without_video_settings_gets_a_file_of_them(checkpoint, tmp_path):
    folder, config = checkpoint
    content = json.loads((folder / NESTED).read_text())
    del content["video_processor"]
    (folder / NESTED).write_text(json.dumps(content))
    processor = load_processor(config)
    assert processor.video_settings == {}
    set_video_budget(processor.video_settings, CONFIG)
    processor.save(tmp_path)
    saved = json.loads((tmp_path / OWN).read_text())
    assert saved["video_processor_type"] == "Qwen3VLVideoProcessor" and saved["max_frames"] == 64


def test_video_settings_that_are_no_json_are_refused(checkpoint):
    folder, config = checkpoint
    (folder / OWN).write_text("[1]")
    with pytest.raises(UserError, match=r"model\.path=.*video_preprocessor_config\.json can not be read"):
        load_processor(config)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer_config.json", '{"unk_token": {}}'),
        ("config.json", '{"model_type": "qwen3_vl", "vision_config": {"depth": {}}}'),
        (NESTED, '{"image_processor": {}, "video_processor": 3}'),
    ],
)
def test_a_damaged_file_is_told_by_its_checkpoint(checkpoint, name, content):
    folder, config = checkpoint
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"model\.path={folder}: "):
        load_processor(config)
