"""How large the largest micro-batch of a run can get, from lengths alone."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """Upper bounds over all micro-batches of one rank; each may be reached by another one."""

    tokens: int
    """Padding included."""
    visual: int
    """Image and video tokens."""
    supervised: int

    def shared(self, ranks: int) -> "Extent":
        """Returns the bounds of one of several ranks that share a micro-batch: an image goes whole, taken as small."""
        if ranks == 1:
            return self
        tokens, visual = -(-self.tokens // ranks), -(-self.visual // ranks)
        return Extent(tokens, visual, min(self.supervised, tokens))
