"""Damage to any file of the newest checkpoint is found before anything is loaded, and the one before is taken."""

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["flip", "cut", "delete", "empty", "grow", "stranger"])
@pytest.mark.parametrize("form", ["file", "parts"])
def test_every_file_and_every_damage(faults, bench, tmp_path, draw, form, kind):
    folder = faults.parts(tmp_path) if form == "parts" else bench.whole("lora")[0]
    newest = folder.checkpoints / f"step_{faults.of(folder).candidates()[0]}"
    paths = [path for path in newest.rglob("*") if path.is_file()]
    assert len(paths) >= (4 if form == "parts" else 2)
    for path in paths * 3:
        found = faults.damaged(folder, path, kind, draw)
        assert found["ok"], found
    assert faults.of(folder).fault(faults.of(folder).candidates()[0]) is None, "mended"
