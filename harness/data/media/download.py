"""Files behind http addresses, downloaded once into a folder."""

import hashlib
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO

from harness.data.row_error import RowError
from harness.errors import reject

MAX_BYTES = 2 * 1024**3
"""Larger files are not downloaded."""
TIMEOUT_S = 30.0
"""A server that sends nothing for this long counts as unreachable."""
DEADLINE_S = 600.0
"""A download that takes longer ends, however steadily it drips."""

_BLOCK = 1 << 20
_REMEDY = "download it yourself and give its path"


def is_address(text: str) -> bool:
    """Says whether a text is an http or https address."""
    return text[:8].lower().startswith(("http://", "https://"))


def fetch(
    url: str,
    folder: Path | None,
    origin: str,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
    deadline_s: float = DEADLINE_S,
) -> str:
    """Returns the path of the file behind an address; it is downloaded where the folder does not hold it.

    Several processes may fetch the same address: each writes a file of its own and moves it into place whole.

    Args:
        url: http or https address.
        folder: Where downloads are kept, under the hash of their address.
        origin: The row, for messages.
        max_bytes: Size limit.
        timeout_s: Longest wait for the next bytes.
        deadline_s: Longest wait for all of them.

    Raises:
        RowError: There is no folder, the server does not give the file, or it is over the limit.
        UserError: The folder can not be written.
    """
    if folder is None:
        raise _unreachable(origin, url, "is a web address, and data.cache_dir=null leaves no place to keep it")
    path = folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    if path.is_file():
        return str(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part, name = tempfile.mkstemp(dir=folder, suffix=".part")
    except OSError as error:
        raise reject("data.cache_dir", folder, f"downloads can not be written there ({error})") from error
    try:
        with os.fdopen(part, "wb") as file:
            _download(url, file, origin, max_bytes, timeout_s, deadline_s)
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)
    return str(path)


def _download(url: str, file: IO[bytes], origin: str, max_bytes: int, timeout_s: float, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    num_bytes = 0
    try:
        with _opener().open(
            urllib.request.Request(url, headers={"User-Agent": "harness"}), timeout=timeout_s
        ) as answer:
            while block := answer.read1(_BLOCK):
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    what = f"{_name(url)} is over {max_bytes:,} bytes; {_REMEDY}"
                    raise RowError(origin, "too large", what)
                if time.monotonic() > end:
                    raise TimeoutError(f"not whole after {deadline_s:g} s")
                file.write(block)
            if missing := answer.length:
                raise TimeoutError(f"the server broke off {missing:,} bytes before the end")
    except RowError:
        raise
    except Exception as error:  # the address is the user's and the answer is anyone's: any kind of error can come
        raise _unreachable(origin, url, f"can not be downloaded ({error})") from error


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener that follows redirections to http and https alone, never to a file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _unreachable(origin: str, url: str, what: str) -> RowError:
    return RowError(origin, "unreachable url", f"{_name(url)} {what}; {_REMEDY}")


def _name(url: str) -> str:
    return repr(url[:200])
