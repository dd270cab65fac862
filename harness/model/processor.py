"""Tokenizer and image processor of a checkpoint, without torchvision, and how they are saved beside a result."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import reject
from harness.model.checkpoint_path import resolve
from harness.model.qwen3_vl import Qwen3VLConfig

_COPIED = ("video_preprocessor_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja")
"""Processor files that neither the tokenizer nor the image processor writes."""


@dataclass(slots=True)
class Processor:
    """The two parts of `Qwen3VLProcessor` that images and text need.

    The whole processor wants a video processor, and that one wants torchvision.
    """

    tokenizer: Any
    image_processor: Any
    path: str

    def save(self, folder: Path) -> None:
        """Writes the processor files, with the pixel budget in force, so that `AutoProcessor` loads the folder."""
        if Path(self.path).is_dir():
            for name in _COPIED:
                if (Path(self.path) / name).is_file():
                    shutil.copyfile(Path(self.path) / name, folder / name)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        _update_nested(folder / "processor_config.json", self.image_processor.to_dict())


def load_processor(config: Qwen3VLConfig) -> Processor:
    """Loads tokenizer and PIL-backed image processor.

    Raises:
        UserError: The checkpoint can not be reached or lacks processor files.
    """
    from transformers import AutoTokenizer

    # By its own name: AutoImageProcessor asks for torchvision in transformers 5.17, whatever the backend.
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    path = resolve(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=False)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, revision=config.revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise reject("model.path", config.path, f"no tokenizer and image processor can be loaded ({reason})") from error
    return Processor(tokenizer, image_processor, path)


def _update_nested(path: Path, image_settings: dict[str, Any]) -> None:
    """Puts the pixel budget in force into the copy of the image settings that newer checkpoints nest here."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "image_processor" in content:
        content["image_processor"] = image_settings
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
