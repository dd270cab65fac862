import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from harness.data.media import video_process
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef, VideoSampling, VideoShape
from harness.data.row_error import RowError
from harness.errors import UserError

SAMPLING = VideoSampling(fps=2.0, min_frames=2, max_frames=8)


def _levels(frames):
    """The grey of the lower half, from which the frame's number can be told."""
    return [round((float(frame[-8:].mean()) - 8) / 20) for frame in frames]


@pytest.mark.parametrize(
    ("name", "codec"), [("v.mp4", "mpeg4"), ("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.webm", "libvpx-vp9")]
)
def test_probe_tells_what_frames_will_give(make_video, name, codec):
    ref = VideoRef(make_video(12, rate=4, name=name, codec=codec), "f:7")
    shape = ref.probe(SAMPLING)
    assert shape == VideoShape(6, 48, 64, shape.timestamps)
    assert shape.timestamps == (0.25, 1.375, 2.5)  # frames 0 2, 4 7, 9 11 at 4 a second
    frames = ref.frames(SAMPLING)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 6
    assert all(frame.dtype == np.uint8 for frame in frames)
    assert _levels(frames) == [0, 2, 4, 7, 9, 11]


def test_content_gives_what_its_file_gives(make_video):
    path = make_video()
    with open(path, "rb") as file:
        ref = VideoRef(file.read(), "f:7")
    assert ref.probe(SAMPLING) == VideoRef(path, "f:7").probe(SAMPLING)
    assert _levels(ref.frames(SAMPLING)) == [0, 2, 4, 7, 9, 11]
    assert ref.stamp() is None and ref.path is None


def test_the_rows_rate_and_the_bounds_count(make_video):
    path = make_video(12, rate=4)
    assert VideoRef(path, "f:7", fps=4.0).probe(VideoSampling()).num_frames == 12
    assert VideoRef(path, "f:7").probe(VideoSampling(max_frames=4)).num_frames == 4
    assert VideoRef(path, "f:7").probe(VideoSampling(fps=0.1, min_frames=5)).num_frames == 5
    assert VideoRef(path, "f:7").probe(VideoSampling(min_frames=50, max_frames=60)).num_frames == 12


def test_a_video_of_one_frame(make_video):
    shape = VideoRef(make_video(1), "f:7").probe(SAMPLING)
    assert (shape.num_frames, shape.timestamps) == (1, (0.0,))


def test_frames_are_resized_while_they_are_decoded(make_video):
    ref = VideoRef(make_video(), "f:7")
    frames = ref.frames(SAMPLING, (32, 96))
    assert {frame.shape for frame in frames} == {(32, 96, 3)}
    assert _levels(frames) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_undone(make_video, degrees):
    """The video is dark above; the rotation is counter-clockwise, so that 90 degrees put the dark half left."""
    ref = VideoRef(make_video(12, rotation=degrees), "f:7")
    shape = ref.probe(SAMPLING)
    assert (shape.height, shape.width) == ((64, 48) if degrees != 180 else (48, 64))
    last = ref.frames(SAMPLING)[-1].astype(int)
    height, width = last.shape[:2]
    assert (height, width) == (shape.height, shape.width)
    dark = {90: last[:, : width // 4], 180: last[-height // 4 :], 270: last[:, -width // 4 :]}[degrees]
    bright = {90: last[:, -width // 4 :], 180: last[: height // 4], 270: last[:, : width // 4]}[degrees]
    assert dark.mean() < 5 and bright.mean() > 45


def _write_frames(folder, picture, sizes):
    refs = []
    for number, size in enumerate(sizes):
        picture(*size).save(folder / f"{number}.png")
        refs.append(ImageRef(str(folder / f"{number}.png"), "f:7"))
    return tuple(refs)


def test_a_list_of_frames_is_a_video(tmp_path, picture):
    frames = _write_frames(tmp_path, picture, [(30, 20)] * 5)
    ref = VideoRef(frames, "f:7")
    assert ref.probe(SAMPLING) == VideoShape(5, 20, 30, (0.25, 1.25, 2.0))
    found = ref.frames(SAMPLING)
    assert all(np.array_equal(a, np.asarray(b.load())) for a, b in zip(found, frames, strict=True))
    assert ref.frames(SAMPLING, (40, 60))[0].shape == (40, 60, 3)
    assert ref.probe(VideoSampling(max_frames=2)).num_frames == 2
    assert ref.stamp()[0] == sum(frame.stamp()[0] for frame in frames)


def test_a_list_of_frames_with_a_rate_is_sampled_as_a_file(tmp_path, picture):
    frames = _write_frames(tmp_path, picture, [(30, 20)] * 12)
    shape = VideoRef(frames, "f:7", fps=4.0).probe(SAMPLING)
    assert shape.num_frames == 6 and shape.timestamps == (0.25, 1.375, 2.5)
    assert VideoRef(frames, "f:7", fps=1.0).probe(VideoSampling()).num_frames == 12


def test_frames_of_unlike_sizes_are_refused(tmp_path, picture):
    ref = VideoRef(_write_frames(tmp_path, picture, [(30, 20), (30, 21)]), "f:7")
    with pytest.raises(RowError, match=r"unlike sizes \(30 x 20, 30 x 21\)") as caught:
        ref.probe(SAMPLING)
    assert caught.value.reason == "broken video"


def test_a_broken_frame_of_a_list_is_found_by_probe(tmp_path, picture):
    frames = _write_frames(tmp_path, picture, [(30, 20)] * 3)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:500])
    with pytest.raises(RowError, match="can not be decoded"):
        VideoRef(frames, "f:7").probe(SAMPLING)


def test_the_stamp_shows_that_a_file_changed(make_video):
    ref = VideoRef(make_video(), "f:7")
    first = ref.stamp()
    os.utime(ref.path, ns=(1, 1))
    assert ref.stamp() == (first[0], 1)


def _refused(ref, match, look="probe"):
    with pytest.raises(RowError, match=match) as caught:
        getattr(ref, look)(SAMPLING)
    assert caught.value.origin == "f:7"
    return caught.value.reason


def test_what_is_no_video_is_refused(tmp_path, make_video):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    assert (
        _refused(VideoRef(str(tmp_path / "text.mp4"), "f:7"), r"f:7: video '.*text\.mp4' can not be") == "broken video"
    )
    assert _refused(VideoRef(b"", "f:7"), "video in the row can not be decoded") == "broken video"
    assert _refused(VideoRef(str(tmp_path / "gone.mp4"), "f:7"), "no such file") == "missing video"
    assert _refused(VideoRef(make_video(), "f:7", max_pixels=1000), "frames of 64 x 48 pixels, more than 1,000") == (
        "too large"
    )
    assert _refused(VideoRef(make_video(2, size=(3840, 16)), "f:7"), "is 3840 x 16: its aspect ratio") == "aspect ratio"


def test_playlists_and_scripts_do_not_open_other_files(tmp_path, make_video):
    inner = make_video()
    for name, text in {
        "v.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{inner}\n#EXT-X-ENDLIST\n",
        "v.ffconcat": f"ffconcat version 1.0\nfile {inner}\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert _refused(VideoRef(str(tmp_path / name), "f:7"), "can not be decoded") == "broken video"


def test_a_file_that_breaks_off_is_found_when_decoded(tmp_path, make_video):
    path = make_video(60, rate=10, size=(320, 240), name="v.mkv")
    with open(path, "rb") as file:
        content = file.read()
    ref = VideoRef(content[: len(content) // 2], "f:7")
    assert _refused(ref, r"breaks off after \d+ of 60 frames|can not be decoded", "frames") == "broken video"


def test_a_container_that_claims_a_little_more_than_it_has_is_read(make_video, monkeypatch):
    ref = VideoRef(make_video(12, rate=4), "f:7")
    told = video_process.probe(ref.source, ref.max_pixels, 60.0)
    monkeypatch.setattr(video_process, "probe", lambda *args: told | {"num_frames": 14})
    frames = ref.frames(SAMPLING)
    assert len(frames) == ref.probe(SAMPLING).num_frames == 7
    assert _levels(frames)[-1] == _levels(frames)[-2]
    monkeypatch.setattr(video_process, "probe", lambda *args: told | {"num_frames": 15})
    assert _refused(ref, "breaks off after 12 of 15 frames", "frames") == "broken video"


def test_a_decoder_that_hangs_is_ended_and_the_next_video_is_read(make_video, tmp_path, monkeypatch):
    path = make_video()
    script = tmp_path / "child.py"
    script.write_text(
        "import runpy, sys, time\n"
        f"child = runpy.run_path({str(video_process._SCRIPT)!r})\n"
        "def hang(*args): time.sleep(600)\n"
        "child['answer'].__globals__['probe'] = hang\n"
        "child['serve']()\n"
    )
    video_process._end()
    monkeypatch.setattr(video_process, "_SCRIPT", script)
    start = time.monotonic()
    match = r"is not decoded after 0\.3 s \(data\.video\.time_limit_s\)"
    assert _refused(VideoRef(path, "f:7", time_limit_s=0.3), match) == "broken video"
    assert time.monotonic() - start < 20
    assert video_process._child is None
    monkeypatch.undo()
    assert VideoRef(path, "f:7").probe(SAMPLING).num_frames == 6


def test_a_decoder_that_crashes_costs_one_video(make_video, tmp_path, monkeypatch):
    path = make_video()
    script = tmp_path / "child.py"
    script.write_text(
        "import os, runpy\n"
        f"child = runpy.run_path({str(video_process._SCRIPT)!r})\n"
        "child['answer'].__globals__['probe'] = lambda *args: os.abort()\n"
        "child['serve']()\n"
    )
    video_process._end()
    monkeypatch.setattr(video_process, "_SCRIPT", script)
    assert _refused(VideoRef(path, "f:7"), "makes the decoder crash") == "broken video"
    monkeypatch.undo()
    assert VideoRef(path, "f:7").probe(SAMPLING).num_frames == 6


def test_one_process_reads_all_videos(make_video):
    ref = pickle.loads(pickle.dumps(VideoRef(make_video(), "f:7")))
    ref.probe(SAMPLING)
    first = video_process._child.process.pid
    ref.frames(SAMPLING)
    with pytest.raises(RowError):
        VideoRef(b"x", "f:7").probe(SAMPLING)
    assert video_process._child.process.pid == first


def test_a_missing_package_names_the_extra(make_video, monkeypatch):
    path = make_video()
    video_process._end()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qwen3-vl-harness\[video\]'"):
        VideoRef(path, "f:7").probe(SAMPLING)


def test_a_forked_worker_starts_a_process_of_its_own(make_video):
    script = f"""
import os
from harness.data.media import video_process
from harness.data.media.video import VideoRef, VideoSampling
ref = VideoRef({make_video()!r}, "f:7")
ref.probe(VideoSampling())
first = video_process._child.process.pid
if os.fork() == 0:
    assert ref.probe(VideoSampling()).num_frames == 6
    os._exit(0 if video_process._child.process.pid != first else 1)
assert os.wait()[1] == 0
assert ref.probe(VideoSampling()).num_frames == 6
assert video_process._child.process.pid == first
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
