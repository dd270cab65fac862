"""Measures what the packed loader delivers: real JPEGs decoded, resized, packed, pinned and copied to the device.

    python benchmarks/caption_workload.py --rows 512 --out outputs/captions
    python benchmarks/loader_speed.py --workers 4 8 --speed 26000 38000

For each number of workers: first as fast as it can, then with a step that takes as long as a training step of the
given speed would (matrix products on a GPU, a pause on a CPU). The wait is the share of the step spent waiting for a
batch, as `perf/data_wait_fraction` of a run counts it.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.data.assemble import data_module
from harness.data.batch import Batch
from harness.data.datamodule import DataModule
from harness.model.processor import load_processor

CUDA = torch.cuda.is_available()


def prepared(train: str, workers: int, length: int, steps: int) -> DataModule:
    """Returns the data of a packed run."""
    config = to_run_config(
        compose_config(
            [
                "experiment=bench_4b",
                "model.path=harness:tiny",
                f"data.train={train}",
                f"data.workers={workers}",
                "data.packing=true",
                f"data.packing_length={length}",
                "data.image.max_tokens=16384",
                "trainer.batch_size=1",
                f"trainer.max_steps={steps}",
            ]
        )
    )
    data = data_module(config, load_processor(config.model))
    data.prepare()
    data.total_steps = steps
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)  # type: ignore[assignment]
    return data


def busy(seconds: float) -> Callable[[], None]:
    """Returns what keeps the device busy for a time, as the products of a training step do."""
    if not CUDA:
        return lambda: time.sleep(seconds)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(50):
        matrix @ matrix
    torch.cuda.synchronize()
    products = round(seconds / ((time.perf_counter() - begun) / 50))

    def run() -> None:
        for _ in range(products):
            matrix @ matrix
        torch.cuda.synchronize()

    return run


def measure(data: DataModule, seconds_per_token: float, warm_up: int) -> tuple[float, float]:
    """Returns tokens/s and the share of the time spent waiting for batches."""
    device = "cuda" if CUDA else "cpu"
    loader: Iterator[Batch] = iter(data.train_dataloader())
    work: Callable[[], None] | None = None
    tokens = begun = 0.0
    for step, batch in enumerate(loader):
        if step == warm_up:
            data.take_wait_seconds()
            begun = time.perf_counter()
        batch.to(device, non_blocking=True)
        if seconds_per_token:
            work = work or busy(seconds_per_token * batch.input_ids.numel())
            work()
        tokens += batch.num_tokens if step >= warm_up else 0
    elapsed = time.perf_counter() - begun
    return tokens / elapsed, data.take_wait_seconds() / elapsed


def main() -> None:
    """Prints a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="outputs/captions/train.jsonl")
    parser.add_argument("--workers", type=int, nargs="+", default=[8])
    parser.add_argument("--speed", type=float, nargs="*", default=[26_000, 38_000], help="tokens/s of the step")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    registry.load()
    print(f"{torch.cuda.get_device_name() if CUDA else 'CPU'}, torch {torch.__version__}, packs of {arguments.length}")
    for workers in arguments.workers:
        for speed in [0.0, *arguments.speed]:
            data = prepared(arguments.train, workers, arguments.length, arguments.steps)
            rate, wait = measure(data, 1 / speed if speed else 0.0, warm_up=arguments.steps // 4)
            asked = f"a step at {speed:,.0f}" if speed else "as fast as it can"
            print(f"workers {workers:2} {asked:>20}: {rate:9,.0f} tokens/s, waits {100 * wait:5.2f} %", flush=True)


if __name__ == "__main__":
    main()
