"""Batches from plain rows of token ids, made without the collator, and the same rows as transformers takes them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.data.batch import Batch

START, END, IMAGE, VIDEO, PAD = 495, 496, 498, 499, 486
"""Token ids of the tiny checkpoint."""
TEXT_IDS = 480
"""Ids below are text."""
PATCH_VALUES = 3 * 2 * 16 * 16


@dataclass
class Sample:
    """One conversation in tokens, and what it shows."""

    seed: int
    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    """0 text, 1 image, 2 video."""
    learnt: list[bool] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    """(P, D) of each image and video."""
    grids: list[tuple[int, tuple[int, int, int]]] = field(default_factory=list)
    """Kind, and (t, h, w) in patches."""

    def __post_init__(self) -> None:
        self.draw = torch.Generator().manual_seed(self.seed)

    def text(self, count: int, learnt: bool = False) -> "Sample":
        ids = torch.randint(0, TEXT_IDS, (count,), generator=self.draw).tolist()
        return self._add(ids, 0, learnt)

    def answer(self, count: int) -> "Sample":
        return self.text(count, learnt=True)

    def image(self, h: int, w: int) -> "Sample":
        self._show(1, (1, h, w))
        return self._add([START], 0)._add([IMAGE] * (h * w // 4), 1)._add([END], 0)

    def video(self, t: int, h: int, w: int) -> "Sample":
        """Frames with a time in text before each."""
        self._show(2, (t, h, w))
        for _ in range(t):
            self.text(3)._add([START], 0)._add([VIDEO] * (h * w // 4), 2)._add([END], 0)
        return self

    def _add(self, ids: list[int], kind: int, learnt: bool = False) -> "Sample":
        self.ids += ids
        self.kinds += [kind] * len(ids)
        self.learnt += [learnt] * len(ids)
        return self

    def _show(self, kind: int, grid: tuple[int, int, int]) -> None:
        self.grids.append((kind, grid))
        patches = grid[0] * grid[1] * grid[2]
        self.pixels.append(torch.randn(patches, PATCH_VALUES, generator=self.draw))


def stock_inputs(samples: list[Sample]) -> dict[str, Tensor | None]:
    """Returns right-padded arguments of the stock model, labels included."""
    shown = {1: [], 2: []}
    for sample in samples:
        for pixels, (kind, grid) in zip(sample.pixels, sample.grids, strict=True):
            shown[kind].append((pixels, grid))
    inputs = {
        "input_ids": _pad([sample.ids for sample in samples], PAD),
        "attention_mask": _pad([[1] * len(sample.ids) for sample in samples], 0),
        "mm_token_type_ids": _pad([sample.kinds for sample in samples], 0),
        "labels": _pad(
            [
                [token if learnt else -100 for token, learnt in zip(sample.ids, sample.learnt, strict=True)]
                for sample in samples
            ],
            -100,
        ),
    }
    for kind, pixels, grids in ((1, "pixel_values", "image_grid_thw"), (2, "pixel_values_videos", "video_grid_thw")):
        if shown[kind]:
            inputs[pixels] = torch.cat([item[0] for item in shown[kind]])
            inputs[grids] = torch.tensor([item[1] for item in shown[kind]])
    return inputs


def _pad(rows: list[list[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def positions(model, sample: Sample) -> Tensor:
    """Returns (4, S), the last three by transformers' own arithmetic."""
    inputs = stock_inputs([sample])
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    mrope_31S, _ = model.model.get_rope_index(**{key: inputs[key] for key in keys if key in inputs})
    return torch.cat([torch.arange(len(sample.ids)).unsqueeze(0), mrope_31S[:, 0]])


def lay_out(model, packs: list[list[Sample]], length: int | None = None, side: str = "right") -> Batch:
    """Puts each pack into a row; with one sample a row and no length it is a padded batch with a mask.

    Args:
        model: For the position ids.
        packs: Samples of each row.
        length: Tokens of a row; unused ones count as a sample of their own.
        side: Where a padded batch is padded.
    """
    packed = length is not None or any(len(pack) > 1 for pack in packs)
    width = length or max(sum(len(sample.ids) for sample in pack) for pack in packs)
    ids_BS = torch.full((len(packs), width), PAD)
    mask_BS, positions_4BS = torch.zeros_like(ids_BS), torch.zeros(4, len(packs), width, dtype=torch.int64)
    starts, visual, predictors, targets = [], [], [], []
    for row, pack in enumerate(packs):
        used = sum(len(sample.ids) for sample in pack)
        place = width - used if side == "left" else 0
        starts += [row * width] if place else []
        for sample in pack:
            end = place + len(sample.ids)
            ids_BS[row, place:end], mask_BS[row, place:end] = torch.tensor(sample.ids), 1
            positions_4BS[:, row, place:end] = positions(model, sample)
            first = row * width + place
            starts.append(first)
            visual += [first + index for index, kind in enumerate(sample.kinds) if kind]
            learnt = [index for index, learnt in enumerate(sample.learnt) if learnt]
            predictors += [first + index - 1 for index in learnt]
            targets += [sample.ids[index] for index in learnt]
            place = end
        if place < width:
            starts.append(row * width + place)
            if packed:
                positions_4BS[0, row, place:] = torch.arange(width - place)
    samples = [sample for pack in packs for sample in pack]
    cu_seqlens = torch.tensor([*starts, ids_BS.numel()], dtype=torch.int32)
    pixels, grids = [one for s in samples for one in s.pixels], [grid for s in samples for _, grid in s.grids]
    return Batch(
        input_ids=ids_BS,
        attention_mask=None if packed else mask_BS,
        position_ids=positions_4BS,
        cu_seqlens=cu_seqlens,
        pixel_values=torch.cat(pixels) if pixels else None,
        grid_thw=torch.tensor(grids) if grids else None,
        visual_index=torch.tensor(visual, dtype=torch.int64),
        target_index=torch.tensor(predictors),
        targets=torch.tensor(targets),
        loss_weights=None,
        max_seqlen=int(cu_seqlens.diff().max()),
        num_samples=len(samples),
        num_tokens=sum(len(sample.ids) for sample in samples),
        num_supervised=len(targets),
        num_visual=len(visual),
    )


def padded(model, samples: list[Sample], side: str = "right") -> Batch:
    return lay_out(model, [[sample] for sample in samples], side=side)


CONTENT: dict[str, Callable[[], list[Sample]]] = {
    "text": lambda: [Sample(1).text(9).answer(4), Sample(2).text(3).answer(7), Sample(3).text(30).answer(2)],
    "images": lambda: [
        Sample(4).text(2).image(4, 6).text(5).answer(4),
        Sample(5).image(2, 4).text(3).answer(2).image(8, 4).image(4, 4).text(2).answer(5),
    ],
    "video": lambda: [Sample(6).text(2).video(3, 4, 6).text(2).answer(6), Sample(7).video(1, 4, 4).text(1).answer(3)],
    "mixed": lambda: [
        Sample(8).text(7).answer(3),
        Sample(9).video(2, 4, 4).text(1).image(4, 8).text(1).video(3, 2, 2).text(2).answer(5),
        Sample(10).image(6, 4).text(2).answer(1),
    ],
}
"""Rows of each kind: text alone, several images, videos, and all of them."""


@pytest.fixture(params=list(CONTENT))
def samples(request) -> list[Sample]:
    return CONTENT[request.param]()


@pytest.fixture
def make_samples() -> Callable[[str], list[Sample]]:
    """Returns samples by their kind of content."""
    return lambda name: CONTENT[name]()


@pytest.fixture
def mixed() -> list[Sample]:
    return CONTENT["mixed"]()


@pytest.fixture(name="stock_inputs")
def give_stock_inputs():
    return stock_inputs


@pytest.fixture(name="lay_out")
def give_lay_out():
    return lay_out


@pytest.fixture(name="padded")
def give_padded():
    return padded


@pytest.fixture(scope="session")
def results():
    """Runs our forward pass: logits, mean loss, and every gradient by name."""
    from harness.model.forward import loss_sum, supervised_logits

    def run(model, batch, **options):
        model.zero_grad()
        logits = supervised_logits(model, batch, **options)
        loss = loss_sum(logits, batch) / batch.num_supervised
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return logits.detach(), loss.item(), gradients

    return run


@pytest.fixture(scope="session")
def assert_same():
    """Compares two such results; gradients of small size are compared against the largest of their parameter."""

    def check(ours, theirs, logits=1e-5, gradients=1e-5):
        torch.testing.assert_close(ours[0], theirs[0], atol=logits, rtol=logits)
        assert ours[1] == pytest.approx(theirs[1], abs=logits)
        assert ours[2].keys() == theirs[2].keys()
        for name, gradient in theirs[2].items():
            size = gradient.abs().max().item() + 1e-6
            assert (ours[2][name] - gradient).abs().max().item() <= gradients * max(size, 1.0), name

    return check


@pytest.fixture
def moe_folder(tmp_path):
    """Returns the folder of a tiny mixture of experts of random weights."""

    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    from harness.model.checkpoint_path import resolve

    tiny = json.loads((Path(resolve("harness:tiny")) / "config.json").read_text(encoding="utf-8"))
    text = {**tiny["text_config"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sides = {"text_config": text, "vision_config": tiny["vision_config"]}
    for side in sides.values():
        side.pop("model_type")
    keep = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**sides, **{key: tiny[key] for key in keep}))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path / "moe")
    return str(tmp_path / "moe")
