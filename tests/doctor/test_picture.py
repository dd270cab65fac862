import numpy as np
import pytest
from PIL import Image

from harness.doctor import picture, spread

LAYOUTS = [
    {"layout": "padded, 16 a batch", "filled": 0.4, "left_out": 0, "set": True},
    {"layout": "packed to 4,096", "filled": 0.98, "left_out": 3, "set": False},
]


@pytest.fixture
def report() -> dict:
    values = {"train": np.array([*range(100), 5000]), "val": np.arange(0, 60, 3)}
    turns = {"train": np.array([2, 2, 4]), "val": np.array([2])}
    histograms = {"tokens per sample": spread.histograms(values), "turns per row": spread.histograms(turns)}
    return {"title": "data=files " * 30, "histograms": histograms, "batching": {"layouts": LAYOUTS}}


@pytest.fixture
def axes_of(report, tmp_path, monkeypatch):
    """Draws the report and returns the panels."""
    from matplotlib.figure import Figure

    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (saved.append(self), save(self, path))[1])

    def draw() -> list:
        picture.draw(report, tmp_path / "doctor.png")
        return saved[-1].axes

    return draw


def test_there_is_a_panel_for_each_histogram_and_one_for_the_layouts(axes_of, tmp_path):
    labels = [axes.get_xlabel() for axes in axes_of()]
    assert labels == [
        "tokens per sample; last bar: up to 5,000",
        "turns per row",
        "share of a batch that is tokens (%)",
    ]
    with Image.open(tmp_path / "doctor.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 20


def test_shares_of_each_split_add_up_to_a_hundred(axes_of):
    for axes in axes_of()[:2]:
        assert [name.get_text().split()[0] for name in axes.get_legend().get_texts()] == ["train", "val"]
        for stairs in axes.patches:
            assert sum(stairs.get_data().values) == pytest.approx(100)


def test_bars_of_whole_numbers_stand_over_them(axes_of):
    edges = axes_of()[1].patches[0].get_data().edges
    assert edges[0] == 1.5 and edges[-1] == 4.5


def test_layouts_say_what_is_set_and_what_is_too_long(axes_of):
    texts = [text.get_text() for text in axes_of()[-1].texts]
    assert texts == ["padded, 16 a batch: 40.0 %, as set", "packed to 4,096: 98.0 %, 3 too long"]


def test_nothing_to_draw_draws_nothing(tmp_path):
    picture.draw({"title": "machine", "histograms": {}}, tmp_path / "doctor.png")
    assert not (tmp_path / "doctor.png").exists()
