"""`data.system`: a text, or the path of a .txt file that holds it."""

from pathlib import Path

from harness.errors import reject


def system_text(value: str | None) -> str | None:
    """Returns the system message of rows that have none of their own.

    Args:
        value: The text, or the path of a .txt file; line breaks at the file's end are left out. None and an empty text
            stand for no system message.

    Raises:
        UserError: A text that looks like a .txt file's path names no file, or one that can not be read.
    """
    if not value or "\n" in value or not value.lower().endswith(".txt"):
        return value or None
    path = Path(value).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise reject("data.system", value, f"is not UTF-8 ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise reject("data.system", value, "no such file; a text must not end with .txt") from error
    if not text:
        raise reject("data.system", value, "the file is empty; give null for no system message")
    return text
