"""`model.new_special_tokens`: reads the list and adds it to a tokenizer."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import reject

_KEY = "model.new_special_tokens"


def read_tokens(values: Sequence[str]) -> list[str]:
    """Returns the tokens, files of them read.

    Args:
        values: Each a token, or the path of a .txt file with one token a line.

    Raises:
        UserError: A file can not be read or is empty, or a token is empty, has blanks around it, or stands twice.
    """
    tokens: list[str] = []
    for value in values:
        tokens += _of_file(value) if value.lower().endswith(".txt") else [value]
    for token, count in Counter(tokens).items():
        if not token or token != token.strip():
            raise reject(_KEY, repr(token), "is empty or has blanks around it; remove them, and empty lines of a file")
        if count > 1:
            raise reject(_KEY, token, f"is listed {count} times; once is enough")
    return tokens


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> range:
    """Adds special tokens to a tokenizer, in place.

    Returns:
        Their ids, in the order of the list.

    Raises:
        UserError: One is a token already, or stands in the chat template, which would then be read otherwise.
    """
    from transformers import AddedToken

    known, template = tokenizer.get_vocab(), str(tokenizer.chat_template)
    for token in tokens:
        if token in known:
            raise reject(_KEY, token, "the tokenizer has this token already; leave it out")
        if token in template or any(token in special for special in tokenizer.all_special_tokens):
            remedy = "stands in the chat template or in another special token, which it would break; choose another"
            raise reject(_KEY, token, remedy)
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids = range(first, first + len(tokens))
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == list(ids)
    return ids


def _of_file(value: str) -> list[str]:
    path = Path(value).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise reject(_KEY, value, f"is not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise reject(_KEY, value, "no such file; a token must not end with .txt") from error
    if not lines:
        raise reject(_KEY, value, "the file is empty; write one token a line")
    return lines
