"""Tokenizer, image processor and video settings of a checkpoint, without torchvision, and how they are saved."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, reject
from harness.model.checkpoint_path import resolve
from harness.model.new_tokens import add_tokens, read_tokens
from harness.model.qwen3_vl import Qwen3VLConfig
from harness.model.rope_scaling import parse, scale

_VIDEO, _NESTED = "video_preprocessor_config.json", "processor_config.json"
_COPIED = (_VIDEO, _NESTED, "chat_template.json", "chat_template.jinja")
"""Processor files that neither the tokenizer nor the image processor writes."""
_VIDEO_PROCESSOR = "Qwen3VLVideoProcessor"


@dataclass(slots=True)
class Processor:
    """The parts of `Qwen3VLProcessor` that text, images and videos need.

    The whole processor wants a video processor, and that one wants torchvision.
    """

    tokenizer: Any
    image_processor: Any
    path: str
    vision_side: int
    """Side of the vision tower's learned grid of positions."""
    longest: int | None = None
    """Tokens that `model.rope_scaling` makes room for; None without it."""
    video_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the checkpoint's video processor; `data/media/image_budget.py` puts those in force into them."""

    def save(self, folder: Path) -> None:
        """Writes the processor files, with the pixel budgets in force, so that `AutoProcessor` loads the folder."""
        if Path(self.path).is_dir():
            for name in _COPIED:
                if (Path(self.path) / name).is_file():
                    shutil.copyfile(Path(self.path) / name, folder / name)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        nested = _update_nested(folder / _NESTED, self.image_processor.to_dict(), self.video_settings)
        # Without a file of its own, transformers would read the image settings for videos too.
        if not nested or (folder / _VIDEO).is_file():
            content = {"video_processor_type": _VIDEO_PROCESSOR} | _read(folder / _VIDEO) | self.video_settings
            _write(folder / _VIDEO, content)


def load_processor(config: Qwen3VLConfig) -> Processor:
    """Loads tokenizer and PIL-backed image processor.

    Raises:
        UserError: The checkpoint can not be reached or lacks processor files, or a setting does not fit it.
    """
    # By its own name: AutoImageProcessor asks for torchvision in transformers 5.17, whatever the backend.
    from transformers import AutoConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    path = resolve(config.path)
    tokenizer, _ = load_tokenizer(config)
    try:
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, revision=config.revision or "main")
        kind: Any = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except Exception as error:  # what stands in a damaged file meets transformers unchecked
        raise _not_loaded(config, error) from error
    scaling = parse(config.rope_scaling, config.max_model_len)
    longest = None if scaling is None else scale(kind.text_config, scaling)
    if longest is not None:
        tokenizer.model_max_length = longest
    side = math.isqrt(kind.vision_config.num_position_embeddings)
    return Processor(tokenizer, image_processor, path, side, longest, _video_settings(config, path))


def load_tokenizer(config: Qwen3VLConfig) -> tuple[Any, range]:
    """Loads the tokenizer with `model.new_special_tokens` added.

    Returns:
        The tokenizer, and the ids of the new tokens.

    Raises:
        UserError: The checkpoint can not be reached or lacks tokenizer files, or a new token can not be used.
    """
    from transformers import AutoTokenizer

    tokens = read_tokens(config.new_special_tokens)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(config.path), revision=config.revision, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise _not_loaded(config, error) from error
    return tokenizer, add_tokens(tokenizer, tokens)


def _not_loaded(config: Qwen3VLConfig, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return reject("model.path", config.path, f"no tokenizer and image processor can be loaded ({reason})")


def _video_settings(config: Qwen3VLConfig, path: str) -> dict[str, Any]:
    """Reads the checkpoint's video settings; as in transformers, those nested in the processor's go first.

    Raises:
        UserError: The files can not be reached, or hold no JSON object.
    """
    from transformers.utils import cached_file

    found: dict[str, Any] = {}
    for name in (_VIDEO, _NESTED):
        try:
            file = cached_file(path, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)
            content = {} if file is None else _read(Path(file))
            found = dict(content.get("video_processor", found)) if name == _NESTED else content
        except (OSError, ValueError, TypeError) as error:
            raise reject("model.path", config.path, f"{name} can not be read ({error})") from error
    return found


def _update_nested(path: Path, image_settings: dict[str, Any], video_settings: dict[str, Any]) -> bool:
    """Puts the budgets in force into the copies of the settings that newer checkpoints nest here.

    Returns:
        Whether it holds video settings.
    """
    content = _read(path)
    if "image_processor" in content:
        content["image_processor"] = image_settings
    if "video_processor" in content:
        content["video_processor"] |= video_settings
    if content:
        _write(path, content)
    return "video_processor" in content


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
