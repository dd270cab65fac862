"""Makes the image-caption workload of the speed figures: real JPEGs, about 450 visual and 240 supervised tokens a row.

    python benchmarks/caption_workload.py --rows 512 --out outputs/captions
    python benchmarks/caption_workload.py --rows 48 --turns 42 --out outputs/captions_long

Image sizes are drawn so that a turn has 716 tokens on average with the tiny model's tokenizer. Fixed seed.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from harness.model.processor import load_processor
from harness.model.qwen3_vl import Qwen3VLConfig

WORDS = (  # noqa: SIM905 - one line of words reads better than a list
    "a an the small large red blue green yellow circle square triangle left right above below near of and with"
).split()


def picture(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Returns a smooth random picture, which a JPEG encoder meets as it meets a photograph."""
    coarse = generator.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def caption(generator: random.Random, tokenizer: object, tokens: int) -> str:
    """Returns words up to about a number of tokens."""
    words: list[str] = []
    while len(tokenizer(" ".join(words))["input_ids"]) < tokens:  # type: ignore[operator]
        words += generator.choices(WORDS, k=8)
    return " ".join(words)


def main() -> None:
    """Writes `train.jsonl` and `images/`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--turns", type=int, default=1, help="images and captions of a row")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    (arguments.out / "images").mkdir(parents=True, exist_ok=True)
    tokenizer = load_processor(Qwen3VLConfig(path="harness:tiny")).tokenizer
    pixels, text = np.random.default_rng(0), random.Random(0)
    with open(arguments.out / "train.jsonl", "w", encoding="utf-8") as file:
        for row in range(arguments.rows):
            turns, images = [], []
            for number in range(row * arguments.turns, (row + 1) * arguments.turns):
                width, height = (int(32 * round(side / 32)) for side in pixels.uniform(448, 904, 2))
                images.append(f"images/{number}.jpg")
                picture(pixels, width, height).save(arguments.out / images[-1], quality=90)
                answer = caption(text, tokenizer, text.randint(160, 320))
                turns.append({"role": "user", "content": "<image>Describe the image."})
                turns.append({"role": "assistant", "content": answer})
            file.write(json.dumps({"messages": turns, "images": images}) + "\n")


if __name__ == "__main__":
    main()
