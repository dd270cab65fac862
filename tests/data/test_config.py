import subprocess
import sys

import pytest

from harness.data.config import DataConfig, GenerationConfig, ImageConfig, PaddingSide, Truncation, VideoConfig
from harness.errors import UserError


def test_rows_over_the_limit_are_dropped_by_default():
    assert DataConfig().truncation is Truncation.delete
    assert DataConfig().max_length is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(max_length=0), r"data\.max_length=0: give at least 1"),
        (lambda: DataConfig(channels=["a", "a"]), r"data\.channels=\['a', 'a'\]: name each channel once"),
        (lambda: DataConfig(workers=-1), r"data\.workers=-1: give 0 or more"),
        (lambda: ImageConfig(min_tokens=0), r"data\.image\.min_tokens=0: give at least 1"),
        (lambda: ImageConfig(max_pixels_decoded=0), r"data\.image\.max_pixels_decoded=0"),
        (lambda: ImageConfig(min_tokens=9, max_tokens=4), r"min_tokens=9: is over data\.image\.max_tokens=4"),
        (lambda: GenerationConfig(max_new_tokens=0), r"data\.generation\.max_new_tokens=0"),
        (lambda: GenerationConfig(max_samples=0), r"data\.generation\.max_samples=0"),
        (lambda: VideoConfig(fps=0), r"data\.video\.fps=0: give a number above 0"),
        (lambda: VideoConfig(time_limit_s=float("inf")), r"data\.video\.time_limit_s=inf"),
        (lambda: VideoConfig(min_frames=9, max_frames=4), r"min_frames=9: is over data\.video\.max_frames=4"),
        (lambda: VideoConfig(min_tokens=0), r"data\.video\.min_tokens=0: give at least 1"),
        (lambda: DataConfig(packing=True), r"data\.packing_length=null: say how many tokens"),
        (lambda: DataConfig(packing_length=512), "packing_length=512: has no effect without data.packing=true"),
        (lambda: DataConfig(packing_fill=False), "packing_fill=false: has no effect without data.packing=true"),
        (
            lambda: DataConfig(packing=True, packing_length=512, padding_free=True),
            r"data\.padding_free=True: has no effect beside data\.packing",
        ),
        (
            lambda: DataConfig(max_tokens_per_batch=512, group_by_length=True),
            r"data\.group_by_length=True: has no effect beside data\.max_tokens_per_batch",
        ),
        (lambda: DataConfig(max_tokens_per_batch=0), r"data\.max_tokens_per_batch=0: give at least 1"),
        (lambda: DataConfig(padding_free=True, padding_side=PaddingSide.left), r"padding_side=left: has no effect"),
        (lambda: DataConfig(prefetch=0), r"data\.prefetch=0: give at least 1"),
        (lambda: DataConfig(prefetch=4, workers=0), r"data\.prefetch=4: has no effect with data\.workers=0"),
        (lambda: DataConfig(index_workers=0), r"data\.index_workers=0: give at least 1"),
    ],
)
def test_values_out_of_range_name_their_key(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_configs_load_no_heavy_package():
    heavy = "{'torch', 'transformers', 'lightning', 'numpy', 'PIL', 'sklearn'}"
    code = f"import sys, harness.data.digits, harness.data.files; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
