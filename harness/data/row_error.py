"""The error of one row: what ends a run with `data.on_error=raise`, and is counted with `skip`."""

from harness.errors import UserError


class RowError(UserError):
    """A row that can not be used."""

    def __init__(self, origin: str, reason: str, detail: str) -> None:
        """Builds the message `origin: detail`.

        Args:
            origin: `file.jsonl:12`.
            reason: A few words under which such rows are counted, the same for all of a kind: `missing image`.
            detail: What is wrong with this one, and the remedy.
        """
        super().__init__(f"{origin}: {detail}")
        self.origin = origin
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str, str]]:
        """Survives pickling across processes."""
        return RowError, (self.origin, self.reason, self.detail)
