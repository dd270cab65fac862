"""Pictures for the tiny model: printed characters and coloured shapes, drawn with PIL.

Each drawing takes a `numpy.random.Generator` and nothing else that varies, so one seed gives one picture. Handwriting
is never drawn: the fonts are the printed ones that PIL and matplotlib ship.
"""

import functools
import math
import pathlib
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PIL_FONT = "PIL default"
"""Stands for `ImageFont.load_default`, which has no file."""

HELD_OUT_FONTS = ("cmss10", "DejaVuSansMono-Bold", "STIXGeneralBolIta")
"""Never trained on: one of each family, for an accuracy on unseen letter forms."""

TRAIN_FONTS = (
    PIL_FONT,
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
"""The text fonts of matplotlib's mpl-data that have 0-9, A-Z and a-z (its symbol and size fonts do not)."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 214),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 20),
    "purple": (130, 40, 170),
    "pink": (250, 150, 190),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = {"small": 0.55, "": 0.8, "large": 1.1}
"""Adjective to diameter, as a share of the cell a shape stands in; the plain size has no adjective."""

_GLYPH_HEIGHT = 64
"""Pixels of the master drawing of a character; targets of at most 128 px are warped from it."""


class Shape(NamedTuple):
    """One coloured shape of a scene."""

    size: str
    colour: str
    kind: str


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == PIL_FONT:
        return ImageFont.load_default(_GLYPH_HEIGHT)
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), _GLYPH_HEIGHT)


@functools.cache
def _glyph(font: str, character: str, stroke: int) -> Image.Image:
    """The ink of one character, white on black, cropped; `stroke` pixels thicker, or thinner where negative."""
    canvas = Image.new("L", (2 * _GLYPH_HEIGHT, 2 * _GLYPH_HEIGHT))
    centre = (_GLYPH_HEIGHT, _GLYPH_HEIGHT)
    ImageDraw.Draw(canvas).text(centre, character, fill=255, font=_font(font), anchor="mm", stroke_width=max(stroke, 0))
    if stroke < 0:
        thin = canvas.filter(ImageFilter.MinFilter(1 - 2 * stroke))
        # Hairlines vanish under erosion: keep the character legible by leaving a ghost of them.
        canvas = Image.blend(canvas, thin, 0.7)
    return canvas.crop(canvas.getbbox())


def _warp(glyph: Image.Image, height: int, width: int, fill: float, rng: np.random.Generator) -> Image.Image:
    """Turns, shears, stretches, bends and places a character so that it takes the share `fill` of its frame."""
    angle, shear, stretch = math.radians(rng.uniform(-20, 20)), rng.uniform(-0.3, 0.3), math.exp(rng.uniform(-0.4, 0.4))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([stretch, 1.0])
    glyph_centre, frame_centre = np.array(glyph.size) / 2, np.array([width, height]) / 2
    linear *= fill * np.min(frame_centre / (np.abs(linear) @ glyph_centre))
    slack = np.maximum(frame_centre - np.abs(linear) @ glyph_centre, 0)
    centre = frame_centre + slack * rng.uniform(-1, 1, 2)
    # PIL wants the map from frame to glyph: s = g + L^-1 (p - c) / w with w = 1 + bend (p - c), scaled to w(0) = 1.
    inverse = np.linalg.inv(linear)
    bend = rng.uniform(-0.3, 0.3, 2) / max(height, width) * (rng.random() < 0.5)
    offset = 1 - bend @ centre
    rows = np.column_stack([inverse + np.outer(glyph_centre, bend), glyph_centre * offset - inverse @ centre])
    coefficients = [*(rows / offset).ravel(), *(bend / offset)]
    return glyph.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


def _coarsen(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Reduces the ink to a shorter side of 8 to 16 pixels and enlarges it again, with a few grey levels or many."""
    scale = (8 if rng.random() < 0.5 else rng.uniform(8, 16)) / min(ink.size)
    reduce = Image.Resampling.BOX if rng.random() < 0.7 else Image.Resampling.BILINEAR
    enlarge = Image.Resampling.BICUBIC if rng.random() < 0.7 else Image.Resampling.BILINEAR
    small = ink.resize((round(ink.width * scale), round(ink.height * scale)), reduce)
    if rng.random() < 0.5:
        gain = rng.uniform(1.0, 1.8)
        small = small.point([min(255, round(gain * value / 16) * 16) for value in range(256)])
    return small.resize(ink.size, enlarge)


def _ink_and_paper(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours that stand apart; half of the draws are dark grey on light grey."""
    kind = rng.random()
    if kind < 0.2:
        return np.zeros(3), np.full(3, 255.0)
    dark, light = np.full(3, rng.uniform(0, 90)), np.full(3, rng.uniform(170, 255))
    if kind < 0.55:
        return dark, light
    if kind < 0.75:
        return light, dark
    while True:
        ink, paper = rng.uniform(0, 255, (2, 3))
        if abs((ink - paper) @ [0.299, 0.587, 0.114]) > 80:
            return ink, paper


def draw_character(character: str, font: str, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """One printed character, of a random look, as an RGB image of `height` x `width` pixels."""
    stroke = int(rng.choice([-1, 0, 1, 2, 3, 4], p=[0.1, 0.35, 0.2, 0.15, 0.1, 0.1]))
    coarse = rng.random() < 0.5
    # A coarse character fills its frame: one that does not would be a few pixels that nobody can read.
    fill = rng.uniform(0.85, 1.05) if coarse else rng.uniform(0.45, 1.0)
    ink = _warp(_glyph(font, character, stroke), height, width, fill, rng)
    if coarse:
        ink = _coarsen(ink, rng)
    elif rng.random() < 0.4:
        ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.03 * min(height, width))))
    share = np.asarray(ink, np.float32)[..., None] / 255
    ink_colour, paper_colour = _ink_and_paper(rng)
    pixels = paper_colour + share * (ink_colour - paper_colour)
    if rng.random() < 0.3:
        pixels = pixels + rng.normal(0, rng.uniform(2, 20), pixels.shape)
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def _outline(kind: str, centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Corners of a shape; a circle is a polygon of 48."""
    if kind == "cross":
        arm = [
            (-1, 3),
            (1, 3),
            (1, 1),
            (3, 1),
            (3, -1),
            (1, -1),
            (1, -3),
            (-1, -3),
            (-1, -1),
            (-3, -1),
            (-3, 1),
            (-1, 1),
        ]
        return [(centre[0] + x * radius / 3, centre[1] + y * radius / 3) for x, y in arm]
    corners, first_deg = {
        "circle": (48, 0),
        "square": (4, 45),
        "triangle": (3, -90),
        "star": (10, -90),
        "diamond": (4, 0),
    }[kind]
    outline = []
    for corner in range(corners):
        angle = math.radians(first_deg + 360 * corner / corners)
        reach = radius * (0.45 if kind == "star" and corner % 2 else 1.0)
        narrow = 0.65 if kind == "diamond" else 1.0
        outline.append((centre[0] + narrow * reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return outline


def draw_shapes(shapes: list[Shape], stacked: bool, rng: np.random.Generator) -> Image.Image:
    """One shape, or two side by side or `stacked`, on plain paper, as an RGB image.

    Args:
        shapes: One or two; the first stands at the left, or on top.
        stacked: Two shapes stand one above the other.
        rng: Draws paper, places and exact sizes.
    """
    cell = 64
    width, height = (cell, cell) if len(shapes) == 1 else (cell, 2 * cell) if stacked else (2 * cell, cell)
    grey = rng.uniform(225, 255) if rng.random() < 0.7 else rng.uniform(0, 40)
    paper = tuple(int(np.clip(grey + delta, 0, 255)) for delta in rng.uniform(-10, 10, 3))
    scale = 3  # drawn larger and reduced: PIL's polygons have no smooth edges
    image = Image.new("RGB", (width * scale, height * scale), paper)
    for index, shape in enumerate(shapes):
        radius = cell / 2 * SIZES[shape.size] * rng.uniform(0.95, 1.05) * 0.85
        slack = max(cell / 2 - radius, 0)
        shift = rng.uniform(-slack, slack, 2)
        x = cell / 2 + shift[0] + (0 if stacked else index * cell)
        y = cell / 2 + shift[1] + (index * cell if stacked else 0)
        colour = tuple(np.clip(COLOURS[shape.colour] + rng.uniform(-12, 12, 3), 0, 255).astype(int).tolist())
        ImageDraw.Draw(image).polygon(_outline(shape.kind, (x * scale, y * scale), radius * scale), fill=colour)
    return image.resize((width, height), Image.Resampling.BOX)
