"""Measures what GPUs of one machine send each other in NCCL's collectives, for docs/scaling.md.

    python benchmarks/links.py --gpus 2
    python benchmarks/links.py --gpus 2 --backend gloo --sizes-mib 1 --results outputs

Rates are bytes that a GPU sends in a second, as in scaling.py: (N - 1) / N of the tensor to gather or to
reduce-scatter it, twice as much to add it up. Each is the median of repeated calls. `multi_gpu.py render` calculates
with the rate at which the largest tensor is gathered, where one is kept for as many GPUs of the card.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from process import ROOT
from scaling import ring
from tables import keep

REPEATS, WARMUP = 20, 5
MIB = 2**20


def measure(rank: int, ranks: int, backend: str, sizes_mib: list[float], store: str, found: Any) -> None:
    """Runs the collectives on a rank of them; the first one puts the rates into `found`."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=120)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
    # Their names from torch 2.12 on, and before.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    for size_mib in sizes_mib:
        values = int(size_mib * MIB / 2) // ranks * ranks
        whole = torch.zeros(values, dtype=torch.bfloat16, device=device)
        share = torch.zeros(values // ranks, dtype=torch.bfloat16, device=device)
        sent = ring(2.0 * values, ranks)
        rates = {
            "all_gather": sent / median_seconds(lambda w=whole, s=share: gather(w, s), device),
            "reduce_scatter": sent / median_seconds(lambda w=whole, s=share: scatter(s, w), device),
            "all_reduce": 2 * sent / median_seconds(lambda w=whole: dist.all_reduce(w), device),
        }
        if rank == 0:
            found[size_mib] = rates
    dist.destroy_process_group()


def median_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the median time of a collective, all ranks ready."""
    times = []
    for number in range(WARMUP + REPEATS):
        dist.barrier()
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        if number >= WARMUP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def wait(device: torch.device) -> None:
    """Waits for a GPU's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measures, shows and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--backend", default="nccl", choices=("nccl", "gloo"))
    parser.add_argument("--sizes-mib", type=float, nargs="+", default=[1, 16, 128, 1024])
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON files")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    store = (args.results / f".links_{time.time_ns()}").resolve()
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        ranks = (args.gpus, args.backend, args.sizes_mib, str(store), found)
        torch.multiprocessing.spawn(measure, ranks, nprocs=args.gpus)
        rates = {f"{size:g}": found[size] for size in args.sizes_mib}
    store.unlink(missing_ok=True)
    on_gpu = args.backend == "nccl"
    made = {
        "key": f"links {args.gpus}",
        "gpus": args.gpus,
        "bytes_per_s": rates,
        "peer_access": on_gpu and torch.cuda.can_device_access_peer(0, 1),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else "",
        },
    }
    for size, rate in rates.items():
        print(f"{size} MiB: " + ", ".join(f"{name} {value / 1e9:.1f} GB/s" for name, value in rate.items()), flush=True)
    keep(made, args.results, "links")


if __name__ == "__main__":
    main()
