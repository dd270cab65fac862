import pytest
import torch

from harness.data.features.entry import HEADER_BYTES, DamagedError, num_bytes, read, write

KEY = "a1" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a1" / "entry.feat"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written_bit_for_bit(path, dtype):
    features = torch.randn(37, 4, 96).to(dtype)
    features[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    write(path, KEY, features)
    found, status = read(path, KEY)
    assert found.dtype is dtype and found.shape == features.shape
    assert torch.equal(found.view(torch.uint8), features.view(torch.uint8))
    assert status.st_size == num_bytes(features) == HEADER_BYTES + features.numel() * features.element_size()
    assert [item.name for item in path.parent.iterdir()] == ["entry.feat"]


def _flip(at):
    def damage(content):
        content[at] ^= 1
        return content

    return damage


def _swap(content):
    """A page that stands where another belongs."""
    first, second = slice(HEADER_BYTES, HEADER_BYTES + 4096), slice(HEADER_BYTES + 4096, HEADER_BYTES + 8192)
    content[first], content[second] = content[second], content[first]
    return content


DAMAGES = {
    "empty": (lambda content: b"", "header is damaged"),
    "header alone": (lambda content: content[:HEADER_BYTES], "not whole"),
    "cut": (lambda content: content[:-1], "not whole"),
    "longer": (lambda content: content + b"0", "not whole"),
    "header flipped": (_flip(45), "header is damaged"),
    "first value flipped": (_flip(HEADER_BYTES), "values changed"),
    "last value flipped": (_flip(-1), "values changed"),
    "page of zeros": (lambda content: content[:HEADER_BYTES] + bytes(4096) + content[HEADER_BYTES + 4096 :], "values"),
    "pages swapped": (_swap, "values changed"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found(path, damage, message):
    write(path, KEY, torch.randn(13, 4, 99))
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with pytest.raises(DamagedError, match=message):
        read(path, KEY)


def test_another_entry_under_the_name_is_found(path):
    write(path, KEY, torch.randn(1, 4, 8))
    with pytest.raises(DamagedError, match="another entry"):
        read(path, "b2" * 32)


def test_a_write_that_fails_leaves_nothing(path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("harness.data.features.entry.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write(path, KEY, torch.randn(1, 4, 8))
    assert not list(path.parent.iterdir())
