"""Compares a training step on the CPU with stock transformers + PEFT: tiny model, same packed rows, one process.

    python benchmarks/cpu_bench.py --out docs/results/performance_cpu.json
    python benchmarks/cpu_bench.py --matrix

Both sides hold the same weights, train the same adapter with AdamW, clip, and see the same batches; their losses are
compared first. Windows of steps alternate between the two, so that what else the machine does meets both alike; the
figure is the median over windows of the ratio of neighbours, in CPU seconds of one thread. The stock side gets what it
can take: the four rows of position ids that keep packed samples apart, sdpa, no cache of keys (with one, transformers
lets packed samples see each other). `--matrix` puts the stock forward, with transformers' own checkpointing, on our own
modules, for each tuner.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tables import read_json
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config
from harness.data.assemble import data_module
from harness.data.batch import Batch
from harness.experiment.environment import environment
from harness.model.checkpoint_path import resolve
from harness.model.forward import supervised_loss
from harness.model.processor import load_processor
from harness.optim.group import parameter_groups
from harness.tuner.outlook import Outlook
from harness.tuner.tuned import Tuned

Step = Callable[[Batch], float]
COMMON = ["model=tiny", "data=digits", "data.workers=0", "data.packing=true", "trainer.batch_size=1"]
LORA = ["tuner=lora", "tuner.rank=8", "tuner.dropout=0"]
WORKLOADS = {f"digits packed to {length}": [*LORA, f"data.packing_length={length}"] for length in (256, 512, 1024)}
CLIP, RATE = 1.0, 1e-4


def packed(config: RunConfig, count: int) -> list[Batch]:
    """Returns the first batches of the run that a config describes."""
    data = data_module(config, load_processor(config.model))
    data.prepare()
    data.total_steps = count
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)  # type: ignore[assignment]
    return [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def tuned(config: RunConfig) -> Tuned:
    """Returns our model with its adapter; no data and no folder is at hand for a start that needs one."""
    loaded = registry.build("model", config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    outlook = Outlook(1000, lambda *_: iter(()), torch.device("cpu"), Path("start.safetensors"))
    return registry.build("tuner", config.tuner, loaded, policy, outlook)


def ours(config: RunConfig) -> tuple[Tuned, Step]:
    """Returns our model and its step."""
    made = tuned(config)
    groups = parameter_groups(made.model, config.optim, RATE, {})
    optimizer = registry.build("optim", config.optim, groups)
    return made, _step(made.model, lambda batch: supervised_loss(made.base, batch) / batch.num_supervised, optimizer)


def stock(config: RunConfig, like: Tuned) -> Step:
    """Returns the step of transformers' own model with PEFT's LoRA in the same places and of the same values."""
    path = resolve(config.model.path)
    base = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype="auto", attn_implementation="sdpa")
    base.config.text_config.use_cache = False
    own: Any = like.model
    kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
    model = get_peft_model(base, LoraConfig(**{key: getattr(own.peft_config["default"], key) for key in kept}))
    values = dict(own.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])
    return stock_step(model)


def stock_step(model: Any) -> Step:
    """Returns the step of a model whose forward is transformers' own."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    return _step(model, lambda batch: model(**stock_inputs(batch)).loss, optimizer)


def stock_inputs(batch: Batch) -> dict[str, Any]:
    """Returns a packed batch as the stock forward takes it, labels included."""
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.target_index + 1] = batch.targets
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.grid_thw,
        "labels": labels.view_as(batch.input_ids),
    }


def _step(model: torch.nn.Module, loss_of: Callable[[Batch], Any], optimizer: torch.optim.Optimizer) -> Step:
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(batch: Batch) -> float:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def window(step: Step, batches: list[Batch]) -> float:
    """Returns CPU seconds a step."""
    begun = time.process_time()
    for batch in batches:
        step(batch)
    return (time.process_time() - begun) / len(batches)


def compare(sides: tuple[Step, Step], batches: list[Batch], windows: int) -> dict[str, Any]:
    """Measures our step and the stock one in turns.

    Raises:
        AssertionError: They do not compute the same.
    """
    losses = [[step(batch) for batch in batches] for step in sides]
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert gap < 1e-4, f"the two sides do not compute the same: {losses}"
    pairs = [(window(sides[0], batches), window(sides[1], batches)) for _ in range(windows)]
    seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratios = sorted(theirs / our for our, theirs in pairs)
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "step_time_s": seconds[0],
        "stock_step_time_s": seconds[1],
        "loss_gap": gap,
        "tokens": sum(batch.num_tokens for batch in batches) / len(batches),
        "windows": windows,
        "steps_per_window": len(batches),
    }


def measure(overrides: list[str], windows: int, steps: int) -> dict[str, Any]:
    """Compares a workload with stock transformers + PEFT."""
    config = to_run_config(compose_config([*COMMON, *overrides]))
    batches = packed(config, steps)
    model, step = ours(config)
    return {"overrides": [*COMMON, *overrides]} | compare((step, stock(config, model)), batches, windows)


def matrix(windows: int, steps: int) -> None:
    """Prints for each tuner the ratio to the stock forward over the same modules."""
    for name in registry.names("tuner"):
        for checkpointing in ("false", "true"):
            chosen = [f"tuner={name}", "data.packing_length=256", f"memory.checkpointing={checkpointing}"]
            try:
                config, same = (
                    to_run_config(compose_config([*COMMON, *chosen, *more])) for more in ([], ["model.attention=sdpa"])
                )
                torch.manual_seed(0)
                made, step = ours(config)
                torch.manual_seed(0)
                other = tuned(same)
                registry.build("memory", config.memory, made.base)
                if checkpointing == "true":
                    other.base.gradient_checkpointing_enable({"use_reentrant": False})
                for module in (*made.base.modules(), *other.base.modules()):
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.0
                other.base.config.text_config.use_cache = False
                found = compare((step, stock_step(other.model)), packed(config, steps), windows)
                print(f"{name:12} checkpointing {checkpointing:5} {found['ratio']:.2f}", flush=True)
            except Exception as error:
                print(f"{name:12} checkpointing {checkpointing:5} {str(error).splitlines()[0][:90]}", flush=True)


def main() -> None:
    """Prints a line for each workload, and writes the results where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of a window")
    parser.add_argument("--matrix", action="store_true", help="every tuner, against the stock forward")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    registry.load()
    if arguments.matrix:
        matrix(max(3, arguments.windows // 3), arguments.steps)
        return
    where = environment("") | {"data_fingerprint": None}
    entries = {entry["key"]: entry for entry in read_json(arguments.out, [])} if arguments.out else {}
    for name, overrides in WORKLOADS.items():
        found = measure(overrides, arguments.windows, arguments.steps)
        entries[name] = {"key": name} | found | {"environment": where}
        spread = f"{found['ratio_min']:.2f} to {found['ratio_max']:.2f}"
        print(f"{name:24} {found['ratio']:.2f} times as fast ({spread}), {found['step_time_s'] * 1e3:.0f} ms a step")
    if arguments.out:
        arguments.out.write_text(json.dumps(list(entries.values()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
