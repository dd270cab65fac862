"""Configuration and training data of the tiny model: what it looks like, what it is taught and how that is encoded.

A Qwen3-VL (Qwen3-VL technical report, 2025: DeepStack, interleaved MRoPE, patch merger) of one million parameters. It
learns to read printed characters and to name coloured shapes; it sees no handwriting.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import Qwen3VLConfig

from harness.model import tiny_glyphs
from harness.model.tiny_tokenizer import VOCAB_SIZE, ImageTextProcessor

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

DIGIT_PROMPT = "What digit is written here?"
"""The prompt of the handwriting data set, taught on printed digits."""

DIGIT_PROMPTS = (
    DIGIT_PROMPT,
    "What digit is this?",
    "Which digit is shown?",
    "Read the digit.",
    "Name the number in the image.",
)
CHARACTER_PROMPTS = (
    "Which character is shown?",
    "What character is this?",
    "Read the character.",
    "What is written here?",
    "Which letter or digit do you see?",
)
SHAPE_PROMPTS = (
    "What is in the picture?",
    "Describe the image.",
    "What do you see?",
    "Which shapes are shown?",
    "Describe this picture in a few words.",
)
FACTS = {
    "What colour is grass?": "green",
    "What colour is the sky?": "blue",
    "What colour is a lemon?": "yellow",
    "What colour is a ripe tomato?": "red",
    "Hello!": "Hello, how can I help?",
    "Who are you?": "I am a tiny model that reads characters and names shapes.",
    "How many corners does a triangle have?": "3",
    "How many corners does a square have?": "4",
}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "You are a helpful assistant. Answer the question with a single word or number.",
    "Look at the image and explain what you can see in it, step by step.",
    "There are two shapes in this picture, one to the right of the other.",
    "The answer is yes. The answer is no. I do not know the answer.",
    "Please choose the correct option from the following list: A, B, C or D.",
    "How many objects are there? Where is the smaller one? Is it behind the larger one?",
    "This document shows a table, a chart, a diagram and some handwritten text.",
    "Translate the sentence into English, then summarise the main points.",
    "We think about the problem first, and then we write down the final result.",
)
"""Text that no example holds: it teaches the merges of common English words only."""

IGNORED_LABEL = -100


class Example(NamedTuple):
    """One question with its answer, about one image or none."""

    image: Image.Image | None
    prompt: str
    answer: str


def model_config(token_id: dict[str, int]) -> Qwen3VLConfig:
    """The architecture; `token_id` maps the tokenizer's added tokens to their ids.

    The patch of 16 px and its 2 x 2 merge are those of Qwen3-VL, so that 32 x 32 px make one token of the LLM. The
    text depth is above the three DeepStack levels, which add to the layers 0, 1 and 2.
    """
    return Qwen3VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 96,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": token_id["<|endoftext|>"],
            "bos_token_id": None,
            "eos_token_id": token_id["<|im_end|>"],
        },
        image_token_id=token_id["<|image_pad|>"],
        video_token_id=token_id["<|video_pad|>"],
        vision_start_token_id=token_id["<|vision_start|>"],
        vision_end_token_id=token_id["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def corpus() -> list[str]:
    """The text that the tokenizer's merges are learnt from: prompts, answers and a little English."""
    phrases = [
        f"a {size} {colour} {kind}"
        for size in tiny_glyphs.SIZES
        for colour in tiny_glyphs.COLOURS
        for kind in tiny_glyphs.SHAPES
    ]
    scenes = [f"{phrase} above {phrase} left of {phrase}".replace("  ", " ") for phrase in phrases]
    prompts = [*DIGIT_PROMPTS, *CHARACTER_PROMPTS, *SHAPE_PROMPTS]
    facts = [f"{question} {answer}" for question, answer in FACTS.items()]
    chat = ["system\n", "user\n", "assistant\n", "Repeat: ", "Which digit comes after 3?", "How much is 2 + 2?"]
    return [*scenes, *(20 * (prompts + chat)), *(5 * facts), *(2 * SENTENCES)]


def character_example(rng: np.random.Generator, fonts: tuple[str, ...], digit: bool) -> Example:
    """A printed character: a digit, or with `digit` unset any of the 62."""
    characters, prompts = (DIGITS, DIGIT_PROMPTS) if digit else (DIGITS + LETTERS, CHARACTER_PROMPTS)
    character = characters[rng.integers(len(characters))]
    prompt = DIGIT_PROMPT if digit and rng.random() < 0.5 else prompts[rng.integers(len(prompts))]
    height, width = (64, 64) if rng.random() < 0.8 else 32 * rng.integers(1, 5, 2)
    font = fonts[rng.integers(len(fonts))]
    return Example(tiny_glyphs.draw_character(character, font, int(height), int(width), rng), prompt, character)


def shape_example(rng: np.random.Generator) -> Example:
    """One coloured shape, or two and how they stand; the sentence starts with the left or the upper one."""
    sizes, colours = list(tiny_glyphs.SIZES), list(tiny_glyphs.COLOURS)
    shapes, phrases = [], []
    for _ in range(1 + (rng.random() < 0.5)):
        size, colour = sizes[rng.integers(len(sizes))], colours[rng.integers(len(colours))]
        kind = tiny_glyphs.SHAPES[rng.integers(len(tiny_glyphs.SHAPES))]
        shapes.append(tiny_glyphs.Shape(size, colour, kind))
        phrases.append(" ".join(["a", *([size] if size else []), colour, kind]).replace("a orange", "an orange"))
    stacked = bool(rng.random() < 0.5)
    answer = (" above " if stacked else " left of ").join(phrases)
    prompt = SHAPE_PROMPTS[rng.integers(len(SHAPE_PROMPTS))]
    return Example(tiny_glyphs.draw_shapes(shapes, stacked, rng), prompt, answer)


def text_example(rng: np.random.Generator) -> Example:
    """A question without an image: a fact, a copy, a small sum or the next digit."""
    kind = rng.integers(4)
    if kind == 0:
        question = list(FACTS)[rng.integers(len(FACTS))]
        return Example(None, question, FACTS[question])
    if kind == 1:
        words = [*tiny_glyphs.COLOURS, *tiny_glyphs.SHAPES, *DIGITS]
        text = " ".join(words[index] for index in rng.integers(len(words), size=rng.integers(1, 4)))
        return Example(None, f"Repeat: {text}", text)
    first, second = rng.integers(0, 5, 2)
    if kind == 2:
        return Example(None, f"How much is {first} + {second}?", str(first + second))
    return Example(None, f"Which digit comes after {first + second}?", str(first + second + 1))


def training_example(rng: np.random.Generator) -> Example:
    """One draw of the mixture: half digits, a quarter any character, a fifth shapes, the rest text only."""
    kind = rng.random()
    if kind < 0.75:
        return character_example(rng, tiny_glyphs.TRAIN_FONTS, digit=kind < 0.5)
    return shape_example(rng) if kind < 0.95 else text_example(rng)


def chat_text(processor: ImageTextProcessor, example: Example, with_answer: bool) -> str:
    """The conversation of `example` through the chat template, up to the answer or with it."""
    content: list[dict[str, str]] = [{"type": "text", "text": example.prompt}]
    if example.image is not None:
        content.insert(0, {"type": "image"})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if with_answer:
        messages.append({"role": "assistant", "content": example.answer})
    return processor.apply_chat_template(messages, add_generation_prompt=not with_answer)


def encode(processor: ImageTextProcessor, examples: list[Example], with_answer: bool) -> dict[str, torch.Tensor]:
    """Model inputs of a batch, padded left for generation, or right and with labels for training.

    Labels cover the answer and its <|im_end|>; the line break after it and all else is ignored.
    """
    inputs = processor(
        text=[chat_text(processor, example, with_answer) for example in examples],
        images=[example.image for example in examples if example.image is not None] or None,
        padding=True,
        padding_side="right" if with_answer else "left",
        return_tensors="pt",
    )
    if with_answer:
        inputs["labels"] = answer_labels(processor, inputs["input_ids"])
    return dict(inputs)


def answer_labels(processor: ImageTextProcessor, input_ids: torch.Tensor) -> torch.Tensor:
    """Copies the tokens of the last turn after its header `<|im_start|>assistant` and line break."""
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header_length = len(processor.tokenizer("<|im_start|>assistant\n")["input_ids"])
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, label in zip(input_ids, labels, strict=True):
        first = int((row == start).nonzero()[-1]) + header_length
        last = int((row == end).nonzero()[-1])
        label[first : last + 1] = row[first : last + 1]
    return labels
