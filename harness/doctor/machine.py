"""What this machine offers: Python, torch, GPUs, cores, memory and disk."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.cores import limit, usable
from harness.doctor import package
from harness.logging.table import show as show_table

_PROBE_LIMIT_S = 300


def measure() -> dict[str, Any]:
    """Looks at the machine; torch and Lightning are imported in a process of their own."""
    outputs = Path("outputs").resolve()
    existing = next(path for path in (outputs, *outputs.parents) if path.is_dir())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **probe(),
        "torchvision": package.version("torchvision"),
        "packages": package.measure(),
        "cores": usable(),
        **_memory(),
        "outputs": str(outputs),
        "disk_free_gib": shutil.disk_usage(existing).free / 2**30,
    }


def probe() -> dict[str, Any]:
    """Returns what torch sees, and whether Lightning can be imported: `{"torch": ..., "lightning": ...}`."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "harness.doctor.probe"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_PROBE_LIMIT_S)
        out, end = done.stdout, f"the process died with exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, end = _text(error.stdout), f"the process did not end in {_PROBE_LIMIT_S} s"
    found: dict[str, Any] = {}
    for line in out.splitlines():
        if line.startswith('{"'):
            found |= json.loads(line)
    for name in ("torch", "lightning"):
        found.setdefault(name, {"error": end})
    return found


def show(machine: dict[str, Any]) -> None:
    """Prints the machine and the packages."""
    torch = machine["torch"]
    rows = [("Python", f"{machine['python']} on {machine['platform']}"), ("torch", _torch_text(torch))]
    gpus = torch.get("gpus", [])
    for number, gpu in enumerate(gpus):
        memory = f"{gpu['free_gib']:.1f} of {gpu['memory_gib']:.1f} GiB free"
        rows.append((f"GPU {number}", f"{gpu['name']}, {memory}, compute capability {gpu['capability']}"))
    if not gpus:
        rows.append(("GPU", "; ".join(["none: training runs on the CPU", *torch.get("warnings", [])])))
    if torch.get("bf16") is not None:
        rows.append(("bf16", "yes" if torch["bf16"] else "no: use memory.precision=fp16 or fp32"))
    lightning = machine["lightning"]
    rows.append(("import lightning", f"breaks: {lightning['error']}" if "error" in lightning else "works"))
    rows.append(("torchvision", machine["torchvision"] or "not installed, and not needed"))
    rows.append(("CPU", f"{machine['cores']} cores"))
    rows.append(("memory", f"{machine['memory_available_gib']:.1f} of {machine['memory_gib']:.1f} GiB free"))
    rows.append(("disk", f"{machine['disk_free_gib']:.1f} GiB free for {machine['outputs']}"))
    show_table("machine", ("what", "found"), rows)
    print()
    package.show(machine["packages"])


def problems(machine: dict[str, Any]) -> list[str]:
    """Returns why nothing could train on this machine."""
    found = package.problems(machine["packages"])
    if found:
        return found
    if "error" in machine["torch"]:
        return [f"torch can not be imported: {machine['torch']['error']}; install it anew"]
    if "error" in machine["lightning"]:
        told = f"lightning can not be imported: {machine['lightning']['error']}"
        if machine["torchvision"] is not None:
            build = f"torchvision {machine['torchvision']} beside torch {machine['torch']['version']}"
            return [f"{told}; {build}: where they are of different builds, pip uninstall torchvision, it is not needed"]
        return [f"{told}; install the versions of constraints.txt"]
    return []


def _torch_text(torch: dict[str, Any]) -> str:
    if "error" in torch:
        return f"breaks: {torch['error']}"
    return f"{torch['version']}, {'without CUDA' if torch['cuda'] is None else 'CUDA ' + torch['cuda']}"


def _memory() -> dict[str, float]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    for line in _read(Path("/proc/meminfo")).splitlines():
        # Unlike the free pages it counts what the system gives back when asked.
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    if (most := limit("memory.max")).isdigit():
        used = limit("memory.current")
        total = min(total, int(most))
        free = min(free, total - int(used)) if used.isdigit() else min(free, total)
    return {"memory_gib": total / 2**30, "memory_available_gib": max(free, 0) / 2**30}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
