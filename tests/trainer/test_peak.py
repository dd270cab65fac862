import pytest
import torch

from harness.trainer.peak import Peaks, measured_peak, peaks, sheet_peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H20", None),
        ("Some Other Card", None),
    ],
)
def test_a_card_is_found_by_its_name(name, peak):
    assert sheet_peak(name) == peak


def test_the_sheet_says_nothing_of_float32_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peaks(torch.device("cuda", 0), "bf16", measure=False) == Peaks(989.5, None)
    assert peaks(torch.device("cuda", 0), "fp32", measure=False) == Peaks(None, None)
    assert peaks(torch.device("cpu"), "bf16", measure=False) == Peaks(None, None)


def test_a_peak_is_work_over_the_median_time(monkeypatch):
    """Products of a thousandth of a second each, on a clock of our own; one window is disturbed."""
    now, windows = [0.0], iter([1, 1, 1, 5, 1, 1, 1])
    pace = [1.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def product(*_, **__):
        now[0] += 1e-3 * pace[0]

    def wait(_, calls=[0]):  # noqa: B006 - counts
        calls[0] += 1
        if calls[0] % 2:
            pace[0] = next(windows)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr("harness.trainer.peak._wait", wait)
    assert measured_peak(torch.device("cpu"), torch.float32) == pytest.approx(2 * 512**3 / 1e-3 / 1e12)
