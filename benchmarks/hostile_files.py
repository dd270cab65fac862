"""Files that mean harm, given to real runs: none of their code may run, and no file outside `data.root` be opened.

OMP_NUM_THREADS=1 python benchmarks/hostile_files.py --out FILE [--only pickle]

Code in a file, if it ran, would leave a folder behind. Whether something outside the root is opened, by whatever
program or library, the kernel tells (inotify). What a command comes to, an error or a completed run, is judged too.
"""

import argparse
import ctypes
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from process import environment
from tables import told

from harness.experiment.folder import RunFolder
from harness.model.checkpoint_path import resolve
from harness.trainer import manifest

TEXT = '{"query": "what?", "response": "that"}\n'
QUICK = (
    *("data.workers=0", "data.cache_dir=null", "data.generation.enabled=false", "trainer.accelerator=cpu"),
    *("trainer.batch_size=2", "trainer.max_steps=2", "trainer.save_every_steps=1"),
)
_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000
Case = Callable[[Path, "Payload"], list[str]]


class Payload:
    """Code that runs where it is unpickled: it leaves a folder."""

    def __init__(self, trace: Path) -> None:
        """Args: trace: The folder."""
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as a call."""
        return os.mkdir, (str(self.trace),)

    @property
    def source(self) -> str:
        """The same as Python source."""
        return f"import os\nos.mkdir({str(self.trace)!r})\n"

    @property
    def tag(self) -> str:
        """The same as a tag of YAML."""
        return f"!!python/object/apply:os.mkdir [{str(self.trace)!r}]\n"


def _rows(name: str, save: Callable[[Any, Path], None]) -> Case:
    """Rows in a file that is read by running what stands in it."""

    def case(folder: Path, payload: Payload) -> list[str]:
        save([payload], folder / name)
        return ["data=files", f"data.train={name}"]

    return case


def _pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def _loading_script(folder: Path, payload: Payload) -> list[str]:
    (folder / "rows").mkdir()
    for name in ("rows.py", "__init__.py"):
        (folder / "rows" / name).write_text(payload.source)
    return ["data=files", "data.train=rows"]


def _model(change: Callable[[Path, Payload], None]) -> Case:
    """A folder of a model, the tiny one, with something added."""

    def case(folder: Path, payload: Payload) -> list[str]:
        shutil.copytree(resolve("harness:tiny"), folder / "model")
        change(folder / "model", payload)
        (folder / "rows.jsonl").write_text(TEXT)
        return ["model=qwen3_vl", "model.path=model", "data=files", "data.train=rows.jsonl", *QUICK]

    return case


def _with_code(name: str) -> Callable[[Path, Payload], None]:
    def change(model: Path, payload: Payload) -> None:
        content = json.loads((model / name).read_text())
        kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
        content["auto_map"] = dict.fromkeys(kinds, "evil.Evil")
        (model / name).write_text(json.dumps(content))
        (model / "evil.py").write_text(f"{payload.source}class Evil:\n    pass\n")

    return change


def _pickled_weights(model: Path, payload: Payload) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"model.norm.weight": payload}, model / "pytorch_model.bin")


def _template(model: Path, payload: Payload) -> None:
    reach = "cycler.__init__.__globals__['__builtins__']['open']"
    (model / "chat_template.jinja").write_text(f"{{{{ {reach}({str(payload.trace)!r}, 'w') }}}}{{{{ messages }}}}")


def _checkpoint(change: Callable[[Path, Payload], None], *, key: str = "trainer.resume", lies: bool) -> Case:
    """A run's folder whose checkpoint was changed; with `lies`, its manifest too."""

    def case(folder: Path, payload: Payload) -> list[str]:
        shutil.copytree(folder.parent / "run", folder / "run", symlinks=True)
        step = (folder / "run" / "checkpoints" / "last").resolve()
        change(step, payload)
        if lies:
            (step / manifest.NAME).unlink()
            manifest.write(step, int(step.name.removeprefix("step_")), {})
        rows = ["data=files", f"data.train={folder.parent / 'rows.jsonl'}", *QUICK]
        return [f"{key}=run", *(["trainer.max_steps=4"] if key == "trainer.resume" else rows)]

    return case


def _pickled_state(step: Path, payload: Payload) -> None:
    torch.save({"state_dict": payload, "loops": payload}, step / "trainer.ckpt")


def _pickled_table(step: Path, payload: Payload) -> None:
    (step / "trainer.ckpt").unlink()
    (step / "trainer.ckpt").mkdir()
    _pickle(payload, step / "trainer.ckpt" / ".metadata")


def _run_file(name: str, text: Callable[[Payload], str]) -> Case:
    """A run's folder with a line more in a file of its config."""

    def case(folder: Path, payload: Payload) -> list[str]:
        shutil.copytree(folder.parent / "run", folder / "run", symlinks=True)
        before = (folder / "run" / name).read_text()
        (folder / "run" / name).write_text(before + text(payload))
        return ["trainer.resume=run", "trainer.max_steps=4"]

    return case


def _study(folder: Path, payload: Payload) -> list[str]:
    (folder / "study.yaml").write_text(f"question: q\naxes: {payload.tag}")
    return ["-m", "+sweep=study.yaml"]


def _override(text: str) -> Case:
    return lambda folder, payload: text.format(trace=payload.trace).split()


def _postscript(folder: Path, payload: Payload) -> list[str]:
    """A picture for which Pillow starts Ghostscript, were its format not refused."""
    (folder / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    )
    row = {"query": "<image>what?", "response": "that", "images": ["a.png"]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "bin").mkdir()
    program = folder / "bin" / "gs"
    program.write_text(f"#!{sys.executable}\n{payload.source}")
    program.chmod(0o755)
    return ["data=files", "data.train=rows.jsonl"]


CALL = "{{_target_:os.mkdir,path:'{trace}'}}"
RUNS: dict[str, tuple[Case, tuple[int, ...]]] = {
    "rows, pickled": (_rows("rows.pkl", _pickle), (2,)),
    "rows, by torch.save": (_rows("rows.pt", torch.save), (2,)),
    "rows, pickled and called JSON Lines": (_rows("rows.jsonl", _pickle), (2,)),
    "rows, pickled and called Parquet": (_rows("rows.parquet", _pickle), (2,)),
    "rows with a loading script": (_loading_script, (2,)),
    "picture that starts a program": (_postscript, (2,)),
    "model with code of its own": (_model(_with_code("config.json")), (0, 2)),
    "tokenizer with code of its own": (_model(_with_code("tokenizer_config.json")), (0, 2)),
    "processor with code of its own": (_model(_with_code("processor_config.json")), (0, 2)),
    "model with pickled weights": (_model(_pickled_weights), (2,)),
    "chat template that reaches for Python": (_model(_template), (2,)),
    "checkpoint, pickled": (_checkpoint(_pickled_state, lies=False), (2,)),
    "checkpoint, pickled, with a manifest that fits": (_checkpoint(_pickled_state, lies=True), (1, 2)),
    "checkpoint in parts, pickled": (_checkpoint(_pickled_table, lies=False), (2,)),
    "checkpoint in parts, pickled, with a manifest that fits": (_checkpoint(_pickled_table, lies=True), (1, 2)),
    "weights_from, pickled": (_checkpoint(_pickled_state, key="trainer.weights_from", lies=False), (2,)),
    "weights_from, pickled, with a manifest that fits": (
        _checkpoint(_pickled_state, key="trainer.weights_from", lies=True),
        (1, 2),
    ),
    "config of a run with a tag": (_run_file("config.yaml", lambda payload: f"it: {payload.tag}"), (2,)),
    "overrides of a run with a tag": (_run_file(".hydra/overrides.yaml", lambda payload: f"- {payload.tag}"), (2,)),
    "overrides of a run with a call": (
        _run_file(".hydra/overrides.yaml", lambda it: f'- "+hydra.callbacks.it={CALL.format(trace=it.trace)}"\n'),
        (2,),
    ),
    "study with a tag": (_study, (2,)),
    "config with a call": (_override(f"+model.it={CALL}"), (2,)),
    "config with a call in a map": (_override(f"tuner=peft +tuner.options.it={CALL}"), (2,)),
}
"""Each with the exit codes that it may end with: 0 where the code is left alone, and the rest is used."""


def entries(root: Path, outside: Path) -> dict[str, dict[str, Any]]:
    """Writes links and playlists below the root; returns rows that reach for what is outside, by how they do."""
    image, video = outside / "secret.png", outside / "secret.mp4"
    (root / "link.png").symlink_to(image)
    (root / "up").symlink_to(outside)
    (root / "first.png").symlink_to(root / "second.png")
    (root / "second.png").symlink_to("../outside/secret.png")
    playlists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{video}'\n",
        "concat.mkv": "ffconcat version 1.0\nfile ../outside/secret.mp4\n",
        "session.mp4": f"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=control:file://{video}\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD><Period><BaseURL>file://{video}</BaseURL></Period></MPD>',
    }
    for name, text in playlists.items():
        (root / name).write_text(text)
    shown = {"query": "<image>what?", "response": "that"}
    seen = {"query": "<video>what?", "response": "that"}
    turns = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "that"}]
    part = {"type": "image_url", "image_url": {"url": image.as_uri()}}
    paths = {
        "..": "../outside/secret.png",
        "its whole path": str(image),
        "a URI": image.as_uri(),
        "a URI with escapes": image.as_uri().replace("secret", "%73ecret"),
        "a URI of this host": f"file://localhost{image}",
        ".. behind a folder": "./up/../../outside/secret.png",
        "a link": "link.png",
        "a link to a link": "first.png",
        "a link to a folder": "up/secret.png",
        "a sibling's name": "../root_too/secret.png",
        "/proc": f"/proc/self/cwd/{image.name}",
        "a home": f"~/{os.path.relpath(image, Path.home())}",
    }
    found = {f"image by {how}": {**shown, "images": [path]} for how, path in paths.items()}
    found |= {
        "image by a path in a map": {**shown, "images": [{"path": str(image)}]},
        "image by an address in a map": {**shown, "images": [{"url": image.as_uri()}]},
        "image of a part of a message": {"messages": [{"role": "user", "content": [part]}, turns[1]]},
        "image of the answer that was rejected": {
            **shown, "images": ["good.png"], "rejected_response": "no", "rejected_images": [str(image)],
        },
        "second image": {"query": "<image><image>what?", "response": "that", "images": ["good.png", "link.png"]},
        "video by its path": {**seen, "videos": [str(video)]},
        "video by a map": {**seen, "videos": [{"video": video.as_uri(), "fps": 1}]},
        "frames of a video": {**seen, "videos": [["good.png", "../outside/secret.png"]]},
    }  # fmt: skip
    return found | {f"video, a playlist ({name})": {**seen, "videos": [name]} for name in playlists}


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Within it, the list gets the names of files in a folder that anything opens; it is filled at the end."""
    libc, opened = ctypes.CDLL(None, use_errno=True), list[str]()
    handle = libc.inotify_init1(_IN_NONBLOCK)
    assert handle >= 0 and libc.inotify_add_watch(handle, os.fsencode(folder), _IN_OPEN) >= 0, "no inotify here"
    try:
        yield opened
        while True:
            events = os.read(handle, 2**16)
            while events:
                size = int.from_bytes(events[12:16], sys.byteorder)
                # Of the folder itself there is no name.
                opened += [name] if (name := os.fsdecode(events[16 : 16 + size].rstrip(b"\0"))) else []
                events = events[16 + size :]
    except BlockingIOError:
        pass
    finally:
        os.close(handle)


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Types a command in a folder."""
    env = environment()
    env["PATH"] = f"{folder / 'bin'}:{env['PATH']}"
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def run_case(name: str, home: Path) -> dict[str, Any]:
    """Gives a run a file with code in it, and says what came of it."""
    case, codes = RUNS[name]
    folder = home / "case"
    folder.mkdir()
    payload = Payload(folder / "ran")
    overrides = case(folder, payload)
    done = call(folder, *overrides)
    item = {"case": name, "ran": payload.trace.exists(), "code": done.returncode}
    told = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    shutil.rmtree(folder)
    return item | {"ok": not item["ran"] and done.returncode in codes, "told": told}


def root_cases(home: Path) -> list[dict[str, Any]]:
    """Runs over rows that reach outside the root, in JSON Lines and as a table, and says of each what came of it."""
    root, outside = home / "root", home / "outside"
    for folder in (root, outside, home / "root_too"):
        folder.mkdir()
    for path in (root / "good.png", outside / "secret.png", home / "root_too" / "secret.png"):
        Image.new("RGB", (40, 30), "red").save(path)
    # Never decoded: that it is opened is what counts.
    (outside / "secret.mp4").write_bytes((outside / "secret.png").read_bytes())
    named = entries(root, outside)
    lines = [*named.values(), {"query": "<image>what?", "response": "that", "images": ["good.png"]}]
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with watched(outside) as opened:
        overrides = ["data=files", f"data.train={home / 'rows.jsonl'}", f"data.root={root}", "data.on_error=skip"]
        done = call(home, *overrides, *QUICK, "trainer.max_steps=1", "hydra.run.dir=rooted")
    log = (home / "rooted" / "train.log").read_text() if done.returncode == 0 else ""
    refused = [f"rows.jsonl:{number}: " in log for number in range(1, len(named) + 1)]
    used = RunFolder(home / "rooted").read_summary().get("data", {}).get("train", {}).get("used")
    found = [{"case": how, "ok": ok} for how, ok in zip(named, refused, strict=True)]
    whole = {"case": "all of these, and the good row", "ok": not opened and used == 1}
    return [
        *found,
        whole | {"opened": opened, "code": done.returncode, "told": done.stderr[-500:] if done.returncode else ""},
    ]


def measure(home: Path, only: str = "") -> dict[str, Any]:
    """Runs all cases in an empty folder, and returns the figures."""
    rooted = root_cases(home) if only in "root" else []
    (home / "rows.jsonl").write_text(TEXT)
    done = call(home, "data=files", f"data.train={home / 'rows.jsonl'}", *QUICK, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    found = []
    for name in RUNS:
        if only in name:
            found.append(run_case(name, home))
            print(found[-1], flush=True)
    return {
        "runs": len(found),
        "root": len(rooted),
        "ran": [item["case"] for item in found if item["ran"]],
        "opened": rooted[-1]["opened"] if rooted else [],
        "wrong": [item for item in [*found, *rooted] if not item["ok"]],
    }


def main() -> int:
    """Returns 0 where nothing ran, and nothing outside was opened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--only", default="", help="part of the cases' names; `root` for those of the root")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        figures = measure(Path(home), options.only)
    return told(figures, options.out)


if __name__ == "__main__":
    sys.exit(main())
