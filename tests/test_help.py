import subprocess
import sys

import pytest

from harness import registry
from harness.help import field_docs, render_help

HEAVY = ("torch", "transformers", "lightning", "peft", "datasets", "wandb", "matplotlib")


@pytest.mark.parametrize("entry", [(g, n) for g in registry.GROUPS for n in registry.options(g)], ids="=".join)
def test_every_key_of_every_option_is_explained(entry):
    group, option = entry
    text = render_help([f"{group}={option}"])
    lines = text[text.index("Keys:") :].splitlines()
    keys = [i for i, line in enumerate(lines) if line.startswith("  ") and " = " in line and line[2] != " "]
    assert len(keys) > 30
    assert not [lines[i] for i in keys if not lines[i + 1].startswith("      ")]


def test_docs_of_a_base_config_are_inherited():
    assert "tokens" in field_docs(registry.get("data", "digits").config)["max_length"]


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
def test_answers_without_importing_anything_heavy(flags):
    code = (
        f"import sys; sys.argv[1:] = {flags!r}\n"
        "import runpy\n"
        "try: runpy.run_module('harness', run_name='__main__')\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "HEAVY []"
