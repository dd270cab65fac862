"""Validation: the loss over every validation row, and exact match of generated answers, item by item."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning import Trainer
from transformers import PreTrainedTokenizerBase

from harness.data.datamodule import DataModule
from harness.data.template.control import ControlTokens
from harness.model.forward import token_losses
from harness.trainer.channel_loss import ChannelLoss, channel_metrics
from harness.trainer.items import ItemLosses, Sums, merge, write
from harness.trainer.module import TrainingModule


@dataclass(slots=True)
class Evaluator:
    """Runs between optimiser steps, outside Lightning's validation loop.

    There its order against saving is fixed by us, which an exact resume needs, and the generation pass can share rows
    over ranks without a second loader.
    """

    data: DataModule
    tokenizer: PreTrainedTokenizerBase
    predictions: Path
    """Receives one JSON line per generated item."""
    items: Path
    """Replaced by what each validation row came to."""
    max_new_tokens: int
    """Longest generated answer."""

    def run(self, trainer: Trainer, module: TrainingModule, step: int) -> dict[str, float]:
        """Returns `val/...` metrics over all ranks; called on every rank. Leaves the model in training mode.

        Args:
            trainer: For rank, device and precision.
            module: Holds the model.
            step: Number of the last optimiser step, written beside each prediction.
        """
        # What a strategy gathers here, it uses in training again, which tensors of inference mode are not for.
        quiet = torch.no_grad() if module.parallel.sharded else torch.inference_mode()
        with module.evaluating(), quiet, trainer.precision_plugin.forward_context():
            metrics, losses = self._loss(trainer, module)
            answers = self._answers(trainer, module, step) if self.data.prompts else []
        if self.data.prompts:
            metrics["val/exact_match"] = sum(item["exact_match"] for item in answers) / max(len(answers), 1)
        if trainer.is_global_zero:
            write(self.items, step, losses, answers)
        return metrics

    def _loss(self, trainer: Trainer, module: TrainingModule) -> tuple[dict[str, float], Sums]:
        losses = ItemLosses()
        sums = torch.zeros(2, dtype=torch.float64, device=module.device)
        channels = ChannelLoss(module.channel_loss.names)
        sharded = module.parallel.sharded
        share, counts = (trainer.global_rank, trainer.world_size), True
        if sharded and len(self.data.val_samples or ()) < trainer.world_size:
            # Ranks would have unequally many batches, and those that have one would wait for the others.
            share, counts = (0, 1), trainer.is_global_zero
        for batch in self.data.val_batches(*share):
            given, batch = batch, batch.to(module.device)
            loss, each_K = module.within(token_losses, module.tuned.base, batch, module.splits_vit)
            if not counts:
                continue
            losses.add(each_K, given)
            channels.add(each_K.double(), batch)
            # Ranks that share a batch have parts of its loss, and its count each.
            counted = batch.num_supervised if batch.share is None or batch.share.rank == 0 else 0
            sums += torch.stack((loss.double(), torch.tensor(counted).to(loss.device)))
        sums = torch.cat((sums, channels.take(module.device).double()))
        total, tokens, *told = _sum_over_ranks(sums, trainer).tolist()
        metrics = {"val/loss": total / max(tokens, 1)} | channel_metrics("val/loss", channels.names, told)
        return metrics, merge(_gather([losses.take()], trainer))

    def _answers(self, trainer: Trainer, module: TrainingModule, step: int) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        # Where weights are split, ranks have to call the same modules in the same order: each answers all prompts.
        share = (0, 1) if module.parallel.sharded else (trainer.global_rank, trainer.world_size)
        for batch in self.data.prompt_batches(*share):
            batch = batch.to(module.device)
            texts = module.within(generate, module.tuned.base, self.tokenizer, batch, self.max_new_tokens)
            for text, reference, prompt, origin in zip(
                texts, batch.references, batch.prompts, batch.origins, strict=True
            ):
                match = text.strip() == reference.strip()
                answers.append(
                    {
                        "step": step,
                        "origin": origin,
                        "prompt": prompt,
                        "reference": reference,
                        "prediction": text,
                        "exact_match": match,
                    }
                )
        answers = answers if module.parallel.sharded else _gather(answers, trainer)
        if trainer.is_global_zero:
            with open(self.predictions, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in answers)
        return answers


def generate(model: Any, tokenizer: PreTrainedTokenizerBase, batch: Any, max_new_tokens: int) -> list[str]:
    """Generates greedily from left-padded prompts and returns the new text of each, without control tokens.

    Special tokens that are content stay: new ones, and marks such as `<|box_start|>`, which references hold too.

    Args:
        model: The Qwen3-VL, in evaluation mode.
        tokenizer: Its tokenizer.
        batch: A PromptBatch on the model's device.
        max_new_tokens: Limit per item.
    """
    # generate encodes images and videos wherever the argument is there, None as well.
    images = {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
    videos = {"pixel_values_videos": batch.pixel_values_videos, "video_grid_thw": batch.video_grid_thw}
    tokens_BS = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_token_type_ids=batch.mm_token_type_ids,
        **(images if batch.pixel_values is not None else {}),
        **(videos if batch.pixel_values_videos is not None else {}),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        # A checkpoint's sampling settings would only be warned of in greedy decoding.
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    hidden = ControlTokens(tokenizer).ids
    new = tokens_BS[:, batch.input_ids.shape[1] :].tolist()
    return tokenizer.batch_decode([[token for token in tokens if token not in hidden] for tokens in new])


def drop_after(predictions: Path, step: int) -> None:
    """Drops the items of later steps, which a resumed run will generate again."""
    if predictions.is_file():
        lines = predictions.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        predictions.write_text("".join(kept), encoding="utf-8")


def _sum_over_ranks(values: torch.Tensor, trainer: Trainer) -> torch.Tensor:
    if trainer.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def _gather(own: list[Any], trainer: Trainer) -> list[Any]:
    if trainer.world_size == 1:
        return own
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, own)
    return [item for part in parts for item in part]
