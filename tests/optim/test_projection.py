import pytest
import torch

from harness.optim.projection import project, project_back, random_basis, seed_of, singular_bases

SHAPES = [(6, 10), (10, 6), (8, 8), (3, 6, 10)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_bases_are_those_of_the_svd_whatever_the_sign(shape):
    gradient = torch.randn(shape)
    bases = singular_bases(gradient, 4, ("left", "right"))
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    for got, want in ((bases["left"], left[..., :4]), (bases["right"], right.mT[..., :4])):
        assert got.shape == want.shape and got.dtype == torch.float32
        torch.testing.assert_close((got * want).sum(-2).abs(), torch.ones_like(want[..., 0, :]), atol=1e-5, rtol=0)


def test_a_basis_holds_more_of_the_gradient_than_any_other():
    """Eckart and Young: the error of the best approximation of rank r is the rest of the singular values."""
    gradient = torch.randn(12, 30)
    rest = torch.linalg.svdvals(gradient)[5:].square().sum().sqrt()
    for sides in (("left",), ("right",), ("left", "right")):
        bases = singular_bases(gradient, 5, sides)
        torch.testing.assert_close((gradient - project_back(project(gradient, bases), bases)).norm(), rest)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_a_gradient_of_lower_rank_still_gets_an_orthonormal_basis(shape):
    gradient = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    for basis in singular_bases(gradient, 4, ("left", "right")).values():
        torch.testing.assert_close(basis.mT @ basis, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_is_zero_or_not_finite_gives_a_basis(value):
    gradient = torch.randn(4, 6)
    gradient[0] = value
    assert singular_bases(gradient, 2, ("left", "right"))["left"].isfinite().all()


def test_bases_take_the_dtype_of_the_gradient_and_coordinates_float32():
    gradient = torch.randn(6, 10, dtype=torch.bfloat16)
    bases = singular_bases(gradient, 4, ("left",))
    assert bases["left"].dtype == torch.bfloat16
    assert project(gradient, bases).dtype == torch.float32
    assert project_back(project(gradient, bases), bases).dtype == torch.bfloat16


def test_a_random_basis_keeps_lengths_on_average_and_depends_on_its_seed_alone():
    gradient = torch.randn(64, 400)
    bases = random_basis(gradient, 32, "left", 7)
    torch.randn(3)
    assert torch.equal(random_basis(gradient, 32, "left", 7)["left"], bases["left"])
    assert not torch.equal(random_basis(gradient, 32, "left", 8)["left"], bases["left"])
    ratio = project(gradient, bases).norm(dim=0) / gradient.norm(dim=0)
    assert ratio.square().mean() == pytest.approx(1.0, abs=0.1)


def test_seeds_depend_on_every_part_and_stay_what_they_were():
    assert seed_of(0, "a", 1) == 175007418084572653
    assert len({seed_of(0, "a", 1), seed_of(1, "a", 1), seed_of(0, "b", 1), seed_of(0, "a", 2)}) == 4
