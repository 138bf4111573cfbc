"""Erasure: no linear map finds the concept again, little else changes, and groups keep what they share."""

import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.erasure import fit_eraser


def sample(rows=200, width=8):
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])[rng.integers(3, size=rows)]
    shift = {"a": np.eye(width)[0], "b": -np.eye(width)[1], "c": np.zeros(width)}
    x = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + 3 * np.stack([shift[n] for n in names])
    return x, names


def one_hot(names):
    return (names[:, None] == np.unique(names)).astype(float)


def cross_covariance(x, names):
    return (x - x.mean(axis=0)).T @ (one_hot(names) - one_hot(names).mean(axis=0)) / len(x)


@pytest.mark.parametrize("width", [8, 60])
def test_no_linear_map_finds_the_concept(width):
    x, names = sample(rows=40 if width == 60 else 200, width=width)
    erased = fit_eraser(x, names)(x)
    assert np.abs(cross_covariance(x, names)).max() > 0.1
    np.testing.assert_allclose(cross_covariance(erased, names), 0, atol=1e-9)
    np.testing.assert_allclose(erased.mean(axis=0), x.mean(axis=0), atol=1e-9)


def test_the_change_is_smaller_than_that_of_an_orthogonal_projection_in_the_whitened_norm():
    x, names = sample()
    erased = fit_eraser(x, names)(x)
    u = np.linalg.svd(cross_covariance(x, names), full_matrices=False)[0][:, :2]
    projected = x - (x - x.mean(axis=0)) @ u @ u.T
    np.testing.assert_allclose(cross_covariance(projected, names), 0, atol=1e-9)
    assert np.mean((erased - x) ** 2) < np.mean((projected - x) ** 2)
    whitening = np.linalg.inv(np.cov(x.T))
    cost = [np.mean(np.einsum("nm,mk,nk->n", d, whitening, d)) for d in (erased - x, projected - x)]
    assert cost[0] <= cost[1]
    np.testing.assert_allclose(cost[0], 2 * (1 - 1 / len(x)), rtol=1e-6)  # as many directions as concepts less one


def test_what_members_of_a_group_share_is_kept():
    rng = np.random.default_rng(1)
    answers, shifts = rng.normal(size=(30, 12)), rng.normal(size=(3, 12))
    groups, ways = np.repeat(np.arange(30), 3), np.tile(["a", "b", "c"], 30)
    x = answers[groups] + np.stack([shifts["abc".index(way)] for way in ways])
    erased = fit_eraser(x, ways, groups=groups)(x)
    members = erased.reshape(30, 3, 12)
    np.testing.assert_allclose(members - members[:, :1], 0, atol=1e-8)  # one verdict for all of them
    assert np.linalg.matrix_rank(members[:, 0] - members[:, 0].mean(axis=0), tol=1e-6) == 12 - 2


def test_with_much_shrinkage_the_projection_is_orthogonal():
    x, names = sample(rows=20, width=40)
    erased = fit_eraser(x, names, shrinkage=1e8)(x)
    u = np.linalg.svd(cross_covariance(x, names), full_matrices=False)[0][:, :2]
    np.testing.assert_allclose(erased, x - (x - x.mean(axis=0)) @ u @ u.T, atol=1e-5)
    constant = fit_eraser(x, np.zeros((20, 1)))
    np.testing.assert_array_equal(constant(x), x)
    assert fit_eraser(x, names)(x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": np.zeros(3)}, "expected"),
        ({"features": np.zeros((1, 2)), "concepts": np.zeros(1)}, "at least two rows"),
        ({"groups": np.zeros(3)}, "as many groups"),
        ({"shrinkage": -1.0}, "shrinkage"),
    ],
)
def test_bad_input(change, message):
    x, names = sample(rows=10)
    with pytest.raises(ConfigError, match=message):
        fit_eraser(**{"features": x, "concepts": names, **change})
