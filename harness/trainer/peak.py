"""How fast a device could multiply matrices: what its data sheet says, and what this machine reaches.

A data sheet's figure is for dense products of bfloat16 with float32 sums, at a clock that no card keeps up under load;
the measured one is a large product on this very card, and the nearer of the two to what a training step could reach.
"""

import re
import statistics
import time
from dataclasses import dataclass

import torch

_SHEETS = (
    (r"\bB200\b", 2250.0, "NVIDIA Blackwell datasheet: 4.5 PFLOPS with sparsity"),
    (r"\bH[12]00 NVL\b", 835.5, "NVIDIA H100 and H200 datasheets, NVL: 1,671 with sparsity"),
    (r"\bH100 PCIe\b", 756.5, "NVIDIA H100 datasheet, PCIe: 1,513 with sparsity"),
    (r"\bG?H[12]00\b", 989.5, "NVIDIA H100 and H200 datasheets, SXM: 1,979 with sparsity"),
    (r"\bH800\b", 989.5, "as the H100 SXM"),
    (r"\bA[18]00\b", 312.0, "NVIDIA A100 datasheet"),
    (r"\bL40S\b", 362.0, "NVIDIA L40S datasheet"),
    (r"\bL40\b", 181.0, "NVIDIA L40 datasheet"),
    (r"\bL4\b", 121.0, "NVIDIA L4 datasheet: 242 with sparsity"),
    (r"\bA40\b", 149.7, "NVIDIA A40 datasheet"),
    (r"\bA10\b", 125.0, "NVIDIA A10 datasheet"),
    (r"\bRTX 4090\b", 165.2, "NVIDIA Ada architecture whitepaper, appendix A"),
    (r"\bRTX 3090\b", 71.0, "NVIDIA GA102 architecture whitepaper"),
)
"""Pattern in the device's name, TFLOP/s of dense bfloat16 products, source; the first that fits holds."""
_WINDOWS, _WINDOW_S = 5, 0.1


@dataclass(frozen=True, slots=True)
class Peaks:
    """Products of a device in TFLOP/s; None where it is not known."""

    sheet: float | None = None
    measured: float | None = None


def sheet_peak(device_name: str) -> float | None:
    """Returns the data sheet's TFLOP/s of dense bfloat16 products, or None for a device that is not in the table."""
    return next((peak for pattern, peak, _ in _SHEETS if re.search(pattern, device_name)), None)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns TFLOP/s of a large product: the median of five windows of a tenth of a second.

    Args:
        device: Where to measure; what is allocated there for it is freed.
        dtype: Type of the matrices.
    """
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    _seconds(a, b, out, 3)
    count = max(1, int(_WINDOW_S / _seconds(a, b, out, 2)))
    times = [_seconds(a, b, out, count) for _ in range(_WINDOWS)]
    del a, b, out
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * size**3 / statistics.median(times) / 1e12


def peaks(device: torch.device, precision: str, measure: bool) -> Peaks:
    """Returns what is known of a run's device.

    Args:
        device: The run's device.
        precision: bf16, fp16 or fp32: the data sheet's figure says nothing of products of float32.
        measure: Measure as well, for about a second.
    """
    on_gpu, exact = device.type == "cuda", precision == "fp32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    sheet = sheet_peak(torch.cuda.get_device_name(device)) if on_gpu and not exact else None
    return Peaks(sheet, measured_peak(device, dtype) if measure else None)


def _seconds(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, count: int) -> float:
    """Returns the seconds of one product."""
    _wait(a.device)
    begun = time.perf_counter()
    for _ in range(count):
        torch.mm(a, b, out=out)
    _wait(a.device)
    return (time.perf_counter() - begun) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
