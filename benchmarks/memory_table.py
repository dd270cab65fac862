"""Predicted against measured memory of training steps on one GPU, and the table of docs/memory.md made from it.

    python benchmarks/memory_table.py run --out outputs/memory_table.jsonl --limit-s 500
    python benchmarks/memory_table.py run --only 4b,lora,8192 --out outputs/memory_table.jsonl
    python benchmarks/memory_table.py run --shared --out outputs/memory_table.jsonl
    python benchmarks/memory_table.py run --tiny --out outputs/memory_tiny.jsonl
    python benchmarks/memory_table.py render --out outputs/memory_table.jsonl

One process goes through the configurations of memory_table.yaml. Each has random weights of a true shape, made on the
GPU, the run's own tuner, memory policies, compilation and optimiser, and packed batches of the image-caption workload;
it is predicted before anything is run, then takes steps in the order in which Lightning does: forward, gradients of
the step before freed, backward, clip, update. A line is added to the file for each, with why where it failed. `--tiny`
takes the tiny model and short packs in the place of all shapes, for a look on the CPU; `--shared` keeps no speeds, for
a GPU that does other work beside. `render` puts the lines into docs/results/memory_<card>.json, where the later of two
of a configuration stays, and writes the table.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import yaml
from memory_tables import SPEEDS, render
from process import ROOT
from random_checkpoint import make_config

from harness import registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config
from harness.data.assemble import data_module
from harness.data.batch import Batch
from harness.data.datamodule import DataModule
from harness.data.extent import Extent
from harness.memory.precision import checked_precision
from harness.memory.prediction import GIB, Prediction, predict
from harness.memory.resolve import plan_of, sizes_of
from harness.model.attention import pick_attention, use_varlen
from harness.model.compiled import compile_blocks, will_compile
from harness.model.forward import supervised_loss
from harness.model.loading import KERNELS, Loaded
from harness.model.patch_embed import make_linear
from harness.model.processor import load_processor
from harness.optim.group import parameter_groups
from harness.trainer.flops import survey
from harness.trainer.peak import sheet_peak
from harness.trainer.standard import training_device
from harness.tuner.outlook import Outlook
from harness.tuner.tuned import Tuned

TABLE = yaml.safe_load((ROOT / "benchmarks" / "memory_table.yaml").read_text(encoding="utf-8"))
CAPTIONS = ROOT / "outputs" / "captions_memory"
VISION_SIDE = 48
"""Of the released checkpoints; the tiny model's is another."""
TINY = ["data.packing_length=1024", "data.workers=0"]
Entry = dict[str, Any]


def overrides(chosen: list[str], tiny: bool) -> list[str]:
    """Returns a configuration's command line, the shape left out."""
    last = [item for item in TINY if "packing=false" not in " ".join(chosen) or "length" not in item] if tiny else []
    return [*TABLE["common"], f"data.train={CAPTIONS}/train.jsonl", "data.workers=8", *chosen[1:], *last]


def prepared(config: RunConfig, total_steps: int, tiny: bool) -> DataModule:
    """Returns a run's data, ready to hand out batches, with images as a released checkpoint takes them."""
    processor = load_processor(config.model)
    if not tiny:
        processor.vision_side = VISION_SIDE
    processor.image_processor.size = {"shortest_edge": 65536, "longest_edge": 16777216}
    data = data_module(config, processor)
    data.prepare()
    data.total_steps = total_steps
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)  # type: ignore[assignment]
    return data


class Batches:
    """Packed batches of the captions, made once for each layout."""

    def __init__(self, tiny: bool) -> None:
        self._tiny, self._made = tiny, {}
        if not (CAPTIONS / "train.jsonl").is_file():
            options = ["--rows", str(TABLE["rows"]), "--out", str(CAPTIONS)]
            script = str(ROOT / "benchmarks" / "caption_workload.py")
            subprocess.run([sys.executable, script, *options], cwd=ROOT, check=True)

    def of(self, config: RunConfig) -> list[Batch]:
        """Returns three batches of a config's layout, on the CPU."""
        data = config.data
        layout = data.packing, data.packing_length, data.padding_free, config.trainer.batch_size
        if layout not in self._made:
            self._made[layout] = self._make(config)
        return self._made[layout]

    def _make(self, config: RunConfig) -> list[Batch]:
        data = prepared(config, -(-3 // config.trainer.accumulate), self._tiny)
        return list(data.train_dataloader())[:3]


def extent_of(batches: list[Batch]) -> Extent:
    """Returns the bounds over these very batches."""
    sizes = [(b.input_ids.numel(), b.num_visual, b.num_supervised) for b in batches]
    return Extent(*map(max, zip(*sizes, strict=True)))


def load(shape: str, config: RunConfig, device: torch.device) -> Loaded:
    """Returns a frozen model with random bfloat16 weights, as `harness.model.loading` leaves one; tiny as shipped."""
    if shape == "tiny":
        return registry.build("model", config.model, device)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            kind = make_config(shape)
            kind._attn_implementation = "sdpa"
            model = transformers.Qwen3VLForConditionalGeneration(kind)
    finally:
        torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    if (picked := pick_attention(config.model.attention, model.dtype)) in KERNELS:
        use_varlen(model, KERNELS[picked])
    make_linear(model.model.visual)
    return Loaded(model, shape)


class Job:
    """A configuration that can take steps."""

    def __init__(
        self,
        shape: str,
        config: RunConfig,
        batches: list[Batch],
        device: torch.device,
        outlook: Outlook | None = None,
        predicts: bool = True,
    ) -> None:
        """Builds in the order of `harness.experiment.train`, and predicts on the way.

        Args:
            shape: Of `random_checkpoint.py`, or tiny.
            config: The run's.
            batches: Training batches, on the CPU.
            device: Where to train.
            outlook: For tuners that look at data; None: there is nothing to look at.
            predicts: Whether memory is predicted, which some methods do not allow.
        """
        self.config, self.device, self.batches = config, device, batches
        loaded = load(shape, config, device)
        registry.build("memory/quant", config.memory.quant, loaded.model, device)
        policy = registry.build("freeze", config.freeze, loaded.model)
        outlook = outlook or Outlook(1000, lambda *_: iter(()), device, Path("start.safetensors"))
        self.tuned: Tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
        base = self.tuned.base
        self.compiled = will_compile(config, base.config.model_type, device)
        began = time.perf_counter()
        self.prediction: Prediction | None = None
        if predicts:
            sizes = sizes_of(config, self.tuned, extent_of(batches), device, self.compiled)
            self.prediction = predict(plan_of(config.memory), *sizes)
        self.prediction_s = time.perf_counter() - began
        registry.build("memory", config.memory, base, device)
        if self.compiled:
            compile_blocks(base, config.data.has_one_length)
        self.model = self.tuned.model.to(device).train()
        groups = parameter_groups(self.model, config.optim, config.optim.lr, self.tuned.lr_scales)
        self.optimizer = registry.build("optim", config.optim, groups)
        self.costs = survey(base)
        precision = checked_precision(config.memory, base, config.trainer)
        self.autocast = (
            None if precision == "fp32" else getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[precision])
        )
        self.taken = 0
        self.last_loss: torch.Tensor | None = None
        self.trains_vision = any(p.requires_grad for p in base.model.visual.parameters())

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns what is differentiated."""
        loss = supervised_loss(self.tuned.base, batch, self.trains_vision) / batch.num_supervised
        return loss if self.tuned.regularizer is None else loss + self.tuned.regularizer()

    def step(self, number: int, marks: Entry | None = None) -> list[Batch]:
        """Takes an optimiser step and returns its batches; `marks` gets what is allocated on the way, in GiB."""
        accumulate = self.config.trainer.accumulate
        used = [self.batches[(number * accumulate + k) % len(self.batches)] for k in range(accumulate)]
        mark(marks, "start")
        for turn, batch in enumerate(used):
            sent = batch.to(self.device, non_blocking=True)
            context = nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)
            with context:
                loss = self.loss(sent)
            mark(marks, "forward")
            if turn == 0:
                self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            mark(marks, "backward")
            self.last_loss = loss.detach()
            del sent, loss
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm)
        self.optimizer.step()
        self.taken += 1
        if self.tuned.after_step is not None:
            self.tuned.after_step(self.taken)
        mark(marks, "update")
        return used

    def seconds(self, number: int) -> tuple[float, int, float]:
        """Takes a step; returns its seconds, tokens, and FLOPs that the method needs."""
        wait(self.device)
        began = time.perf_counter()
        used = self.step(number)
        wait(self.device)
        flops = sum(self.costs.of(batch)[0] for batch in used)
        return time.perf_counter() - began, sum(batch.num_tokens for batch in used), flops


def mark(marks: Entry | None, name: str) -> None:
    """Notes allocated memory at this point and the peak since the last one."""
    if marks is None or not torch.cuda.is_available():
        return
    marks[name] = torch.cuda.memory_allocated() / GIB
    marks[f"{name}_peak"] = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()


def wait(device: torch.device) -> None:
    """Waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(device: torch.device) -> Entry:
    """Returns peaks since the last reset, in GiB, and resets; nothing on the CPU."""
    if device.type != "cuda":
        return {"peak_allocated_gib": None, "peak_reserved_gib": None}
    kinds = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    torch.cuda.reset_peak_memory_stats()
    return {f"peak_{kind}_gib": value / GIB for kind, value in kinds.items()}


def measure(job: Job) -> Entry:
    """Takes the steps of a job and returns what was measured."""
    device = job.device
    began = time.perf_counter()
    for number in range(TABLE["warmup_steps"]):
        job.step(number)
    wait(device)
    warm_s, first = time.perf_counter() - began, peaks(device)
    steps = [job.seconds(number) for number in range(TABLE["timed_steps"])]
    steady = peaks(device)
    marks: Entry = {}
    job.step(0, marks)
    sheet = sheet_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    rate = statistics.median(flops / seconds for seconds, _, flops in steps)
    highest = {key: max(first[key], steady[key]) if first[key] else None for key in first}
    return {
        **highest,
        "steady_allocated_gib": steady["peak_allocated_gib"],
        "tokens_per_s": statistics.median(tokens / seconds for seconds, tokens, _ in steps),
        "step_ms": 1e3 * statistics.median(seconds for seconds, *_ in steps),
        "mfu": None if sheet is None else rate / sheet / 1e12,
        "warmup_s": warm_s,
        "marks_gib": marks,
    }


def described(job: Job) -> Entry:
    """Returns what is known of a job before it runs."""
    base = job.tuned.base
    extent = extent_of(job.batches)
    assert job.prediction is not None
    return {
        "plan": job.prediction.plan.text(),
        "compiled": job.compiled,
        "tokens": extent.tokens,
        "visual": extent.visual,
        "supervised": extent.supervised,
        "parameters": sum(p.numel() for p in job.model.parameters()),
        "trainable": sum(p.numel() for p in job.model.parameters() if p.requires_grad),
        "attention": base.config.get_text_config()._attn_implementation,
        "parts_gib": job.prediction.parts,
        "predicted_gib": job.prediction.peak_gib,
        "prediction_s": job.prediction_s,
    }


def attempt(chosen: list[str], batches: Batches, tiny: bool) -> Entry:
    """Builds and measures one configuration; what fails is told in the entry."""
    config = to_run_config(compose_config(overrides(chosen, tiny)))
    device = training_device(config.trainer, 0)
    entry: Entry = {"key": " ".join(chosen), "status": "completed", "error": None, "device": platform.machine()}
    if device.type == "cuda":
        entry["device"] = torch.cuda.get_device_name(device)
        torch.cuda.reset_peak_memory_stats()
    entry["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        job = Job("tiny" if tiny else chosen[0], config, batches.of(config), device)
        peaks(device)  # A run reads weights that it will quantise to the host.
        entry |= described(job)
        entry |= measure(job)
    except Exception as error:
        entry |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]} | peaks(device)
    return entry


def release() -> None:
    """Frees what a configuration left, the failed too."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(wanted: list[list[str]], out: Path, limit_s: float, tiny: bool, shared: bool) -> None:
    """Goes through configurations, adding a line for each; no new one is begun after so many seconds."""
    began = time.perf_counter()
    registry.load()
    batches = Batches(tiny)
    out.parent.mkdir(parents=True, exist_ok=True)
    for chosen in wanted:
        if (past := time.perf_counter() - began) > limit_s:
            print(f"{past:.0f} s: not begun: {' '.join(chosen)} and what follows", flush=True)
            return
        entry = attempt(chosen, batches, tiny)
        release()
        if shared:
            entry |= dict.fromkeys(SPEEDS)
        entry["seconds"] = time.perf_counter() - began - past
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{past:.0f} s: {' '.join(words(entry))}", flush=True)


def words(entry: Entry) -> Iterator[str]:
    """Yields what a reader of the console wants to see."""
    yield f"{entry['key']}:"
    if entry["error"]:
        yield entry["error"].splitlines()[0]
        return
    measured = entry["peak_allocated_gib"]
    yield f"predicted {entry['predicted_gib']:.2f} GiB,"
    if measured:
        yield f"measured {measured:.2f}, error {100 * (entry['predicted_gib'] / measured - 1):+.1f} %,"
    if entry["tokens_per_s"]:
        yield f"{entry['tokens_per_s']:,.0f} tokens/s, {entry['step_ms']:.0f} ms,"
    yield f"{entry['seconds']:.0f} s in all"


def main() -> None:
    """Does what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "list", "render"))
    parser.add_argument("--only", nargs="*", default=[], help="words of which a configuration holds all: 4b,lora,8192")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no configuration after so long")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "memory_table.jsonl", help="file of lines")
    parser.add_argument("--tiny", action="store_true", help="the tiny model and short packs, for the CPU")
    parser.add_argument("--shared", action="store_true", help="the GPU does other work too: keep memory, no speeds")
    args = parser.parse_args()
    groups = [group.split(",") for group in args.only] or [[]]
    wanted = [c for c in TABLE["configurations"] if any(all(word in " ".join(c) for word in group) for group in groups)]
    if args.command == "render":
        render(args.out, ROOT / "docs")
    elif args.command == "list":
        print("\n".join(" ".join(chosen) for chosen in wanted))
    else:
        run(wanted, args.out, args.limit_s, args.tiny, args.shared)


if __name__ == "__main__":
    main()
