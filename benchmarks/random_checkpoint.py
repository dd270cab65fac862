"""Makes a Qwen3-VL checkpoint of a true shape with random weights: speed and memory do not depend on their values.

    python benchmarks/random_checkpoint.py --shape 4b --out outputs/random_4b

Tokenizer and image processor are those of the tiny model; the vocabulary has the true size, of which that tokenizer
uses the first 512 entries.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from harness.model.processor import load_processor
from harness.model.qwen3_vl import Qwen3VLConfig as ModelConfig

TINY = ModelConfig(path="harness:tiny")
_VIT_S = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_VIT_L = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
SHAPES = {
    "2b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        _VIT_S,
    ),
    "4b": (
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        _VIT_S,
    ),
    "8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        _VIT_L,
    ),
}
"""Text and vision sizes from the config.json of Qwen/Qwen3-VL-{2B,4B,8B}-Instruct."""


def make_config(shape: str) -> Qwen3VLConfig:
    """Returns the config of a true shape, with the tiny model's special tokens."""
    text, vision = SHAPES[shape]
    tokenizer = load_processor(TINY).tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ends = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    common = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144}
    return Qwen3VLConfig(
        text_config={**text, **common, "rope_parameters": rope, "tie_word_embeddings": shape != "8b"},
        vision_config={**vision, "num_heads": 16, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=shape != "8b",
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ends["vision_start"],
        vision_end_token_id=ends["vision_end"],
    )


def main() -> None:
    """Makes the weights on the GPU if there is one, and saves them in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3VLForConditionalGeneration(make_config(arguments.shape))
    model.save_pretrained(arguments.out)
    processor = load_processor(TINY)
    # The pixel budget of the released checkpoints: up to 16,384 tokens an image.
    processor.image_processor.size = {"shortest_edge": 65536, "longest_edge": 16777216}
    processor.save(arguments.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"shape": arguments.shape, "parameters": parameters, "folder": str(arguments.out)}))


if __name__ == "__main__":
    main()
