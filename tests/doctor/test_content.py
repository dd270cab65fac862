import pytest

from harness.data.media.image import ImageRef
from harness.data.row import Media, Message, Rejected, Row
from harness.doctor import content
from harness.doctor.content import Content

ASKED, SAID = Message("user", ("hi",)), Message("assistant", ("there",))
PICTURE = ImageRef("x.png", "rows.jsonl:1")


@pytest.fixture
def counted() -> dict:
    found = Content()
    shows = (Message("user", (Media.image, Media.image, "What?")), SAID)
    found.add(Row(messages=(Message("system", ("be short",)), ASKED, SAID), origin="a:1", channel="web"))
    found.add(Row(messages=(ASKED, SAID, ASKED, SAID), origin="a:2", rejected=Rejected((ASKED, SAID)), channel="web"))
    found.add(Row(messages=(ASKED, SAID), origin="a:3", label=False, tools=({"name": "f"},)))
    found.add(Row(messages=shows, images=(PICTURE, PICTURE), origin="a:4", max_pixels=4096))
    found.add(Row(messages=(Message("assistant", ("text",)),), origin="a:5", plain=True))
    found.add(Row(messages=(ASKED, Message("tool_call", ("{}",)), Message("assistant", ("x",), 0.5)), origin="a:6"))
    return found.plain()


def test_turns_leave_system_messages_out(counted):
    assert counted["turns"]["total"] == 2 + 4 + 2 + 2 + 1 + 3
    assert (counted["turns"]["min"], counted["turns"]["max"]) == (1, 4)


def test_rows_are_counted_by_what_they_hold(counted):
    assert counted["rows"] == 6
    assert counted["channels"] == {"web": 2}
    assert counted["images_per_row"] == {0: 5, 2: 1} and counted["videos_per_row"] == {0: 6}
    assert counted["kinds"] == {
        "system message": 1,
        "preference (rejected answer)": 1,
        "KTO label": 1,
        "tools": 1,
        "tool calls": 1,
        "pixel bounds of its own": 1,
        "pre-training text": 1,
        "loss weights of its own": 1,
    }


def test_what_supervised_fine_tuning_ignores_is_said(counted):
    assert content.findings("train", counted) == [
        "train: 1 row with a preference (rejected answer), which supervised fine-tuning ignores",
        "train: 1 row with a KTO label, which supervised fine-tuning ignores",
    ]
    assert content.findings("train", Content().plain()) == []


def test_table_lists_channels_and_images_but_no_videos(counted, capsys):
    content.show("train", counted)
    out = capsys.readouterr().out
    assert "channel web" in out and "2 images" in out and "0 images" in out
    assert "video" not in out


def test_many_channels_are_summed_up(capsys):
    found = Content()
    for number in range(25):
        found.add(Row(messages=(ASKED, SAID), origin=f"a:{number}", channel=f"c{number}"))
    content.show("train", found.plain())
    lines = capsys.readouterr().out.splitlines()
    assert sum("channel c" in line for line in lines) == 20
    assert any(line.split() == ["channel", "other", "5"] for line in lines)
