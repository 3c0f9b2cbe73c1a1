"""The search for the largest eigenvalue on matrices whose spectrum is known."""

import pytest
import torch
from torch import Tensor

from gisgd_ray.measures import lanczos


class TestNotTheSecondEigenvalue:
    def test_of_how_many_starts_it_happens(self):
        """Top eigenvalues 3 % apart: of 500 starts some end at the second, of no pair both."""
        spectrum = torch.tensor([1.0, 0.97, *torch.linspace(0.5, 0.0, 50)], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)

        def start() -> Tensor:
            return torch.randn(52, generator=generator, dtype=torch.float64)

        once = [lanczos.search(lambda v: spectrum * v, start(), 1e-3, 100)[0] for _ in range(500)]
        twice = [lanczos.largest_eigenvalue(lambda v: spectrum * v, start) for _ in range(500)]
        assert all(found.converged for found in (*once, *twice))
        assert any(found.value < 0.99 for found in once)
        assert all(found.value > 0.999 for found in twice)

    def test_a_start_with_little_of_the_top(self):
        """The first search ends at 0.97; the second finds 1, and the third makes it precise."""
        spectrum = torch.tensor([1.0, 0.97, *torch.linspace(0.5, 0.0, 50)], dtype=torch.float64)
        first, second = torch.ones(2, 52, dtype=torch.float64)
        first[0] = 1e-6
        one, x = lanczos.search(lambda v: spectrum * v, first, 1e-3, 100)
        assert one.value == pytest.approx(0.97, abs=1e-4)
        assert one.converged
        assert float((spectrum * x - one.value * x).norm()) == pytest.approx(one.residual, rel=1e-3)
        starts = iter([first, second])
        both = lanczos.largest_eigenvalue(lambda v: spectrum * v, lambda: next(starts))
        assert both.converged
        assert both.value == pytest.approx(1.0, abs=1e-5)
        assert both.residual <= 1e-3
        assert one.iterations < both.iterations < 40

    @pytest.mark.parametrize("most", range(1, 30))
    def test_is_not_converged_where_the_budget_ends_between(self, most):
        spectrum = torch.linspace(1.0, 0.0, 20, dtype=torch.float64)
        ones = torch.ones(20, dtype=torch.float64)
        options = (lambda v: spectrum * v, ones, 1e-3, 100)
        needed = lanczos.search(*options)[0].iterations
        starts = iter([ones, ones + torch.arange(20).double()])
        found = lanczos.largest_eigenvalue(
            lambda v: spectrum * v, lambda: next(starts), max_iterations=most
        )
        assert found.iterations <= most
        assert not (found.converged and most <= needed + 1)
        assert found.value <= 1 + 1e-12


@pytest.mark.parametrize(("d", "top"), [(5_000, 1.07), (100_000, 1.3), (100_000, -1.5)])
def test_one_eigenvalue_above_very_many_equal_ones(d: int, top: float) -> None:
    """A random start is so nearly one of the equal ones' eigenvectors that its residual is small
    at once: half of the searches ended there."""
    spectrum = torch.ones(d)
    spectrum[d // 3] = top
    for seed in range(10):
        starts = iter(torch.randn(3, d, generator=torch.Generator().manual_seed(seed)))
        found = lanczos.largest_eigenvalue(spectrum.mul, starts.__next__)
        assert found.value == pytest.approx(abs(top), rel=1e-3)
        assert found.converged


@pytest.mark.parametrize("d", [1, 2, 3, 7])
def test_what_has_fewer_directions_than_a_basis(d: int) -> None:
    starts = iter(torch.randn(6, d, generator=torch.Generator().manual_seed(0)))
    spectrum = torch.linspace(-2, 1, d)
    found = lanczos.largest_eigenvalue(spectrum.mul, starts.__next__, tolerance=1e-5)
    assert found.value == pytest.approx(float(spectrum.abs().max()), rel=1e-5)
    assert found.converged
    flat = lanczos.largest_eigenvalue(torch.zeros_like, starts.__next__, tolerance=1e-5)
    assert flat.value == 0
    assert flat.converged
