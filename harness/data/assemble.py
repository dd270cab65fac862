"""Puts the data side of a run together from its config and the checkpoint's processor."""

import hashlib
import json
from typing import Any

import transformers

from harness.config import RunConfig
from harness.data.config import DataConfig
from harness.data.datamodule import DataModule
from harness.data.media.image_budget import set_budget, set_video_budget
from harness.data.media.patches import PixelMaker
from harness.data.media.video import VideoSampling
from harness.data.template.encoder import Encoder
from harness.data.template.render import Renderer
from harness.data.template.text import TextEncoder
from harness.errors import reject
from harness.model.processor import Processor
from harness.registry import build


def data_module(config: RunConfig, processor: Processor) -> DataModule:
    """Reads what the config names; `DataModule.prepare` looks at the rows.

    Raises:
        UserError: A file or a setting can not be used.
    """
    encoder = make_encoder(config.data, processor)
    return DataModule(
        build("data", config.data),
        encoder,
        config.data,
        seed=config.seed,
        batch_size=config.trainer.batch_size,
        accumulate=config.trainer.accumulate,
        val_batch_size=config.trainer.val_batch_size,
        key=text_key(config.data, encoder.text),
        sequence_parallel=config.memory.sequence_parallel,
    )


def make_encoder(config: DataConfig, processor: Processor) -> Encoder:
    """Builds what turns rows into tensors; writes the pixel budgets into the processor, which is saved with the result.

    Raises:
        UserError: The checkpoint is no Qwen3-VL, or a setting does not fit it.
    """
    if processor.longest is not None and (config.max_length or 0) > processor.longest:
        remedy = f"model.rope_scaling makes room for {processor.longest:,} tokens; raise model.max_model_len"
        raise reject("data.max_length", config.max_length, remedy)
    longest = min((limit for limit in (config.longest_sample(), processor.longest) if limit is not None), default=None)
    tokenizer, images = processor.tokenizer, processor.image_processor
    set_budget(images, config.image)
    renderer = Renderer(
        tokenizer,
        system=config.system,
        agent_template=config.agent_template,
        loss_scale=config.loss_scale,
        response_prefix=config.response_prefix,
    )
    video = config.video
    sampling = VideoSampling(video.fps, video.min_frames, video.max_frames, images.temporal_patch_size)
    pixels = PixelMaker(images, set_video_budget(processor.video_settings, video))
    text = TextEncoder(tokenizer, renderer, sampling)
    return Encoder(
        text,
        pixels,
        max_length=longest,
        truncation=config.truncation,
        vision_side=processor.vision_side,
        channels=config.channels,
    )


def text_key(config: DataConfig, text: TextEncoder) -> str:
    """Returns a hash of all that token ids depend on but the rows themselves."""
    parts: list[Any] = [
        text.tokenizer.backend_tokenizer.to_str(),
        str(text.tokenizer.chat_template),
        transformers.__version__,
        text.renderer.system,
        config.agent_template.name,
        config.loss_scale.name,
        config.response_prefix,
        config.bbox.name,
        config.image.max_pixels_decoded,
        [config.video.fps, config.video.min_frames, config.video.max_frames],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
