"""Against transformers' own functions, called without their classes, which need torchvision."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from harness.data.media.video_sampling import VideoSampling, frame_indices, spread, timestamps


@given(
    num_frames=st.integers(1, 200_000),
    rate=st.sampled_from([1.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0, 7.3]),
    fps=st.floats(0.05, 60),
    bounds=st.tuples(st.integers(1, 50), st.integers(1, 1000)).map(sorted),
)
def test_indices_and_timestamps_are_transformers(num_frames, rate, fps, bounds):
    sampling = VideoSampling(9.9, *bounds)
    processor = types.SimpleNamespace(fps=2, min_frames=bounds[0], max_frames=bounds[1])
    metadata = types.SimpleNamespace(total_num_frames=num_frames, fps=rate)
    wanted = Qwen3VLVideoProcessor.sample_frames(processor, metadata, fps=fps).tolist()
    found = frame_indices(num_frames, rate, fps, sampling)
    assert found == wanted
    for size in (1, 2, 3):
        times = Qwen3VLProcessor._calculate_timestamps(None, list(wanted), rate, size)
        assert timestamps(found, rate, size) == tuple(times)


def test_a_second_of_video_by_hand():
    indices = frame_indices(60, 30.0, 2.0, VideoSampling())
    assert indices == [0, 20, 39, 59]
    assert timestamps(indices, 30.0, 2) == (pytest.approx(1 / 3), pytest.approx(49 / 30))
    assert timestamps([0, 10, 20], 10.0, 2) == (0.5, 2.0)


def test_spread_takes_first_and_last():
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(9, 3) == [0, 4, 8]
    assert spread(9, 1) == [0]
