"""Range checks that every low-rank adapter shares."""

from collections.abc import Sequence

from harness.errors import reject


def check_low_rank(rank: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> None:
    """Raises UserError for a rank, scale, dropout or target list that no adapter can have."""
    if rank < 1:
        raise reject("tuner.rank", rank, "must be 1 or more")
    if alpha <= 0:
        raise reject("tuner.alpha", alpha, "must be more than 0")
    if not 0 <= dropout < 1:
        raise reject("tuner.dropout", dropout, "must be at least 0 and less than 1")
    if not target_modules:
        raise reject("tuner.target_modules", [], "name at least one module, or all-linear")
