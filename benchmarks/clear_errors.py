"""Types twenty likely mistakes as a user would, and times how long each takes to a clear error.

OMP_NUM_THREADS=1 python benchmarks/clear_errors.py --out FILE [--repeat 3] [--only tuner]

A mistake is right where the command ends with exit code 2 and one line, in which the words are that help, and where
no weights were loaded: the processes say at their end which of the packages are there that load them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from process import environment

FILES = {
    "train.jsonl": '{"query": "what?", "response": "that"}\n',
    "no_answer.jsonl": '{"messages": [{"role": "user", "content": "what?"}]}\n',
    "elsewhere.jsonl": '{"query": "<image>what?", "response": "that", "images": ["photos/1.png"]}\n',
    "quotes.jsonl": "{'query': 'what?', 'response': 'that'}\n",
    "qwen2_vl/config.json": '{"model_type": "qwen2_vl"}\n',
}
"""What lies in the folder where the commands are typed."""
MISTAKES = {
    "tuner.rnak=8": "did you mean tuner.rank?",
    "tuner=lroa": "did you mean lora?",
    "tuner.rank=eight": "expected int",
    "optim.lr=-1e-4": "optim.lr=-0.0001: ",
    "model.dtype=bf16": "bfloat16",
    "data.max_lenght=512": "did you mean data.max_length?",
    "data.packing=true": "data.packing_length=null: say how many tokens",
    "optim=galore": "set tuner=full",
    "optim.vit_lr=1e-5": "keeps vit frozen",
    "tuner.target_modules=[q_porj]": "did you mean q_proj?",
    "trainer.accelerator=gpu": "torch sees no GPU here",
    "trainer.resume=outputs/nowhere": "no run folder",
    "data=files": "data.train",
    "data=files data.train=trian.jsonl": "no such file",
    "data=files data.train=no_answer.jsonl": "no_answer.jsonl:1: ",
    "data=files data.train=elsewhere.jsonl": "elsewhere.jsonl:1: image 'photos/1.png' does not exist",
    "data=files data.train=quotes.jsonl": "quotes.jsonl:1: ",
    "model=qwen3_vl model.path=./nowhere": "no such folder",
    "model=qwen3_vl model.path=qwen2_vl": "not a Qwen3-VL",
    "-m tuner.rank=8,0": "in the trial tuner.rank=0: ",
}
"""What is typed, and words of the message, whatever their case."""
LIMIT_S = 3.0
"""In which each has to be told."""
LOADING = ("torch", "transformers", "safetensors")
SPY = """
import atexit, os, sys

def tell():
    with open(os.environ["LOADED"], "a") as file:
        print(*(name for name in {names!r} if name in sys.modules), file=file)

atexit.register(tell)
"""
"""Runs in each process before anything else."""


def typed(command: str, words: str, folder: Path) -> dict[str, Any]:
    """Types a command and says what came of it.

    Args:
        command: Behind `python -m harness`.
        words: That its message has to have.
        folder: With FILES, and the spy.
    """
    spied = folder / "loaded"
    spied.write_text("")
    # No GPU, also where there is one: a log-in node.
    env = environment() | {"LOADED": str(spied), "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = f"{folder / 'spy'}:{env['PYTHONPATH']}"
    begun = time.monotonic()
    call = [sys.executable, "-m", "harness", *command.split()]
    done = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    lines = done.stderr.strip().splitlines()
    loaded = sorted(set(spied.read_text().split()))
    clear = done.returncode == 2 and len(lines) == 1 and words.lower() in lines[0].lower()
    return {"command": command, "ok": clear and not loaded, "seconds": seconds, "message": lines, "loaded": loaded}


def measure(only: str, repeat: int) -> dict[str, Any]:
    """Types every mistake so often, and returns the figures; of each its median time counts."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for name, content in {**FILES, "spy/sitecustomize.py": SPY.format(names=LOADING)}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        for command, words in MISTAKES.items():
            if only not in command:
                continue
            times = [typed(command, words, folder) for _ in range(repeat)]
            worst = min(times, key=lambda item: item["ok"])
            found.append(worst | {"seconds": median(item["seconds"] for item in times)})
            print(f"{found[-1]['seconds']:.2f} s {command}: {found[-1]['message']}", flush=True)
    return {
        "tried": len(found),
        "wrong": [item for item in found if not item["ok"]],
        "in_time": sum(item["ok"] and item["seconds"] < LIMIT_S for item in found),
        "median_s": median(item["seconds"] for item in found),
        "longest_s": max(item["seconds"] for item in found),
        "repeat": repeat,
        "found": found,
    }


def main() -> int:
    """Returns 0 where each mistake is told clearly, and before weights are loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is typed")
    parser.add_argument("--only", default="", help="part of the commands to type")
    options = parser.parse_args()
    figures = measure(options.only, options.repeat)
    if options.out:
        options.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(f"median {figures['median_s']:.2f} s, longest {figures['longest_s']:.2f} s; {len(figures['wrong'])} wrong")
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
