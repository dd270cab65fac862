"""Training of new tokens beside any tuner: their rows alone, where asked for, and an export that holds them.

A full model's folder has the rows in its tables. An adapter's folder has them in PEFT's own format, trainable tokens:
in the adapter itself where its method takes them (the LoRA family), else as an adapter of their own in `new_tokens/`
inside the folder, to be loaded and merged first. A base with fewer rows than the tokenizer has tokens must grow first:
`base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.errors import reject
from harness.model.new_rows import NewTokens, RowsApart
from harness.tuner.tuned import Tuned

FOLDER = "new_tokens"
"""Inside an adapter's folder: the new rows, where the adapter's own format has no place for them."""
_HEAD = "lm_head"
_CONFIG, _WEIGHTS, _NATIVE = "adapter_config.json", "adapter_model.safetensors", "trainable_token_indices"


def settle(tuned: Tuned, new: NewTokens | None, alone: bool) -> None:
    """Sees to it that rows of new tokens train, and are exported; changes `tuned` in place.

    Args:
        tuned: What the tuner made.
        new: The new tokens; None for none, which changes nothing.
        alone: Whether of the embedding and the head they train alone.

    Raises:
        UserError: Nothing would train the rows, or the tuner trains the whole tables.
    """
    if new is None:
        return
    embedding, head = tuned.base.get_input_embeddings(), tuned.base.get_output_embeddings()
    if not alone:
        if not any(p.requires_grad for p in embedding.parameters()):
            remedy = "nothing trains the rows of new_special_tokens, so they would say nothing; set true"
            raise reject("model.train_new_tokens", "false", remedy)
        return
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        remedy = "the tuner trains the whole embedding or head; leave them out of tuner.modules_to_save and freeze.full"
        raise reject("model.train_new_tokens", "true", remedy)
    before = {id(p) for p in tuned.model.parameters()}
    rows = RowsApart(tuned.base, new)
    tuned.adapter |= {name for name, p in tuned.model.named_parameters() if id(p) not in before}
    tuned.export = _exporter(tuned.export, rows, list(new.changed), str(tuned.base.name_or_path))


def _exporter(export: Callable[[Path], Path], rows: RowsApart, ids: list[int], base: str) -> Callable[[Path], Path]:
    def with_rows(folder: Path) -> Path:
        with rows.folded():
            target = export(folder)
        if not (target / "config.json").is_file():
            _write(target, rows.exported(), ids, base)
        return target

    return with_rows


def _write(folder: Path, rows: dict[str, Tensor], ids: list[int], base: str) -> None:
    """Puts the rows into an adapter's folder.

    Args:
        folder: What the tuner exported.
        rows: (N, D) by name of the table.
        ids: The N rows' places in it.
        base: Where the base model came from.
    """
    path = folder / _CONFIG
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = [name.rpartition(".")[2] for name in rows]
    if _NATIVE in content:
        content[_NATIVE] = dict.fromkeys(names, ids)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(load_file(folder / _WEIGHTS) | _keys(rows, "token_adapter."), folder / _WEIGHTS, {"format": "pt"})
        return
    from peft import TrainableTokensConfig

    own = TrainableTokensConfig(
        token_indices=ids, target_modules=names, base_model_name_or_path=base, inference_mode=True
    )
    own.save_pretrained(str(folder / FOLDER))
    # Of tied tables PEFT wants the rows under both names.
    both = {_HEAD: next(iter(rows.values())).clone()} | rows
    save_file(_keys(both, ""), folder / FOLDER / _WEIGHTS, {"format": "pt"})


def _keys(rows: dict[str, Tensor], inner: str) -> dict[str, Tensor]:
    return {f"base_model.model.{name}.{inner}trainable_tokens_delta": value for name, value in rows.items()}
