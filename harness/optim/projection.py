"""Projections of a gradient G (m x n) to rank r: U^T G from the left, G V from the right, U^T G V from both sides.

Shapes may have leading dimensions, for weights that stack the matrices of experts. A basis has orthonormal columns
(m x r or n x r), or independent normal ones of variance 1 / r.
"""

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK = 8192
"""Columns copied to float64 at a time: an embedding's gradient has 150,000 or more on its long side."""


def singular_bases(gradient: Tensor, rank: int, sides: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the first singular vectors of a gradient on each side, in its dtype.

    Those of the short side are eigenvectors of G G^T. In float64 squaring loses nothing that float32 resolves, and the
    eigenvectors of a small symmetric matrix take a fraction of the time of an SVD. Those of the long side follow by
    G^T U, made orthonormal: where the gradient has a lower rank than asked for, any completion serves.

    Args:
        gradient: m x n.
        rank: Number of vectors, at most min(m, n).
        sides: `left` for a basis of m x r, `right` for one of n x r, or both.
    """
    tall = gradient.shape[-2] > gradient.shape[-1]
    short, long = ("right", "left") if tall else ("left", "right")
    wide = gradient.mT if tall else gradient
    gram = wide.new_zeros((*wide.shape[:-1], wide.shape[-2]), dtype=torch.float64)
    for columns in wide.split(CHUNK, dim=-1):
        exact = columns.double()
        gram += exact @ exact.mT
    # A gradient that is not finite ends the run where the loss is read, with a clear message; eigh would end it here.
    vectors = torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0)).eigenvectors[..., -rank:].flip(-1)
    bases = {short: vectors}
    if long in sides:
        bases[long] = torch.linalg.qr(wide.mT.double().nan_to_num(0.0, 0.0, 0.0) @ vectors).Q
    return {side: bases[side].to(gradient.dtype).contiguous() for side in sides}


def random_basis(gradient: Tensor, rank: int, side: str, seed: int) -> dict[str, Tensor]:
    """Returns a basis of independent normal numbers of variance 1 / rank, the same for the same seed and device."""
    size = gradient.shape[-2 if side == "left" else -1]
    generator = torch.Generator(gradient.device).manual_seed(seed)
    shape = (*gradient.shape[:-2], size, rank)
    basis = torch.randn(shape, generator=generator, device=gradient.device, dtype=torch.float32)
    return {side: (basis / rank**0.5).to(gradient.dtype)}


def project(gradient: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """Returns the gradient in the coordinates of the bases, float32 or wider."""
    if "left" in bases:
        gradient = bases["left"].mT @ gradient
    if "right" in bases:
        gradient = gradient @ bases["right"]
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def project_back(low: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """Returns the matrix that has these coordinates in the bases, in their dtype."""
    matrix = low.to(next(iter(bases.values())).dtype)
    if "left" in bases:
        matrix = bases["left"] @ matrix
    return matrix @ bases["right"].mT if "right" in bases else matrix


def num_values(gradient: Tensor, rank: int, sides: tuple[str, ...]) -> tuple[int, int]:
    """Returns how many numbers the bases have, and how many a gradient (m x n) in their coordinates."""
    *stacked, m, n = gradient.shape
    size = {"left": m, "right": n}
    low = [rank if side in sides else size[side] for side in size]
    return math.prod(stacked) * rank * sum(size[side] for side in sides), math.prod((*stacked, *low))


def seed_of(*parts: object) -> int:
    """Returns a seed that depends on nothing but the parts: not on the platform, the process or what was drawn."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)
