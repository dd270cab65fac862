"""Imports torch and Lightning in a process of its own: what breaks or warns there leaves the doctor alone.

Prints a JSON object a line, torch first, so that a crash in the second import still leaves the first line.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Prints what torch sees and whether Lightning can be imported."""
    for name, look in (("torch", _torch), ("lightning", _lightning)):
        print(json.dumps({name: _guarded(look)}), flush=True)


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except Exception as error:  # whatever an import of a broken installation raises is what is asked for
        return {"error": f"{type(error).__name__}: {str(error).strip()[:400]}"}


def _torch() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if available else []
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "bf16": bool(torch.cuda.is_bf16_supported()) if available else None,
        "warnings": sorted({str(warning.message).splitlines()[0] for warning in told}) if not available else [],
    }


def _gpu(number: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
    }


def _lightning() -> dict[str, Any]:
    import lightning

    return {"version": lightning.__version__}


if __name__ == "__main__":
    main()
