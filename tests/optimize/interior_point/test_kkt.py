"""The structured solvers against a dense matrix."""

import numpy as np
import pytest

from ocp.optimize.interior_point.banded import BandedLU
from ocp.optimize.interior_point.border import Bordered
from ocp.optimize.interior_point.kkt import Layout, Model
from ocp.optimize.interior_point.riccati import Riccati

SHAPES = [
    Layout(2, 1, 0, 3, 0),
    Layout(3, 2, 2, 4, 2),
    Layout(1, 1, 1, 1, 1),
    Layout(2, 1, 0, 5, 3),
    Layout(2, 3, 1, 4, 1),
]
every_shape = pytest.mark.parametrize("layout", SHAPES, ids=str)
every_solver = pytest.mark.parametrize("solver", [BandedLU, Riccati])
PRIMAL, DUAL = 0.2, 1e-2


def random_model(layout, seed, convex):
    rng, size = np.random.default_rng(seed), layout.n + layout.m + layout.s
    H, E = rng.standard_normal((layout.N, size, size)), rng.standard_normal((layout.n + layout.s,) * 2)
    H, E = (H @ H.transpose(0, 2, 1), E @ E.T) if convex else (H + H.transpose(0, 2, 1), E + E.T)
    J, G = rng.standard_normal((layout.n, size, layout.N)), rng.standard_normal((layout.g, layout.n + layout.s))
    start = rng.standard_normal((layout.n, layout.s))
    return Model(J, H.transpose(1, 2, 0), E, G, start, np.eye(layout.s), h=0.3)


def dense(layout, model, primal=PRIMAL, dual=DUAL):
    """The matrix with the parameters last."""
    n, m, s, N, g = layout.n, layout.m, layout.s, layout.N, layout.g
    K = np.zeros((layout.size + s,) * 2)
    at = lambda k: k * layout.block  # noqa: E731
    q, nu = np.arange(layout.size, layout.size + s), np.arange(layout.size - g, layout.size)

    def add(rows, columns, block):
        K[np.ix_(rows, columns)] += block
        if not np.array_equal(rows, columns):
            K[np.ix_(columns, rows)] += block.T

    for k in range(N + 1):
        costate, x = np.arange(at(k), at(k) + n), np.arange(at(k) + n, at(k) + 2 * n)
        add(costate, x, -np.eye(n))
        add(x, x, primal * model.h * np.eye(n))
        if k == N:
            z = np.concatenate((x, q))
            add(z, z, model.end)
            add(nu, z, model.G)
            break
        u, after = np.arange(at(k) + 2 * n, at(k + 1)), np.arange(at(k + 1), at(k + 1) + n)
        z = np.concatenate((x, u, q))
        add(z, z, model.H[..., k])
        add(u, u, primal * model.h * np.eye(m))
        add(after, z, model.J[..., k])
    add(nu, nu, -dual * np.eye(g))
    add(np.arange(n), q, model.start)
    add(q, q, model.parameters + primal * np.eye(s))
    return K


@every_shape
@every_solver
def test_solutions_are_those_of_a_dense_solve(layout, solver):
    model = random_model(layout, 0, convex=True)
    right = np.random.default_rng(1).standard_normal(layout.size + layout.s)
    system = Bordered(solver())
    system.assemble(layout, model)
    assert system.factor(PRIMAL, DUAL)
    packed, q = system.solve(right[: layout.size], right[layout.size :])
    np.testing.assert_allclose(
        np.append(packed, q), np.linalg.solve(dense(layout, model), right), rtol=1e-9, atol=1e-11
    )


@every_shape
def test_riccati_succeeds_where_the_inertia_is_right_and_only_there(layout):
    """Over many random models, of which both kinds occur."""
    outcomes = set()
    for seed in range(40):
        model, primal = random_model(layout, seed, convex=False), 20.0 * (seed % 4)
        negative = (np.linalg.eigvalsh(dense(layout, model, primal)) < 0).sum()
        system = Bordered(Riccati())
        system.assemble(layout, model)
        assert system.factor(primal, DUAL) is bool(negative == layout.negative)
        outcomes.add(negative == layout.negative)
    assert outcomes == {True, False}


@every_shape
def test_band_lu_sees_the_parity_of_the_inertia(layout):
    for seed in range(20):
        model = random_model(layout, seed, convex=False)
        negative = (np.linalg.eigvalsh(dense(layout, model)[: layout.size, : layout.size]) < 0).sum()
        solver = BandedLU()
        solver.assemble(layout, model)
        assert solver.factor(PRIMAL, DUAL) is bool((negative - layout.negative) % 2 == 0)


def test_a_singular_matrix_is_refused():
    layout = Layout(1, 1, 0, 2, 2)
    model = random_model(layout, 0, convex=True)
    model.G[1] = model.G[0]
    solver = BandedLU()
    solver.assemble(layout, model)
    assert solver.factor(0.0, DUAL)
    solver.assemble(layout, Model(model.J, 0 * model.H, 0 * model.end, 0 * model.G, model.start, model.parameters, 1.0))
    assert not solver.factor(0.0, 0.0)


@every_shape
def test_packing_is_undone(layout):
    rng = np.random.default_rng(0)
    n, m, N = layout.n, layout.m, layout.N
    costates, z, end, nu = (rng.standard_normal(shape) for shape in ((N + 1, n), (N, n + m), n, layout.g))
    found = layout.unpack(layout.pack(costates, z, end, nu))
    for a, b in zip(found, (costates, np.vstack((z[:, :n], end)), z[:, n:], nu), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gains_are_those_of_a_perturbed_optimum():
    """x_{k+1} = x_k + u_k, cost sum x^2 + u^2: the scalar Riccati equation p = 1 + p / (1 + p)."""
    N = 60
    ones = np.ones((1, 2, N))
    H = 2.0 * np.repeat(np.eye(2)[:, :, None], N, axis=2)
    solver, layout = Riccati(), Layout(1, 1, 0, N, 0)
    solver.assemble(layout, Model(ones, H, np.zeros((1, 1)), np.zeros((0, 1)), np.zeros((1, 0)), np.zeros((0, 0)), 1.0))
    assert solver.factor(0.0, 0.0)
    golden = (1 + 5**0.5) / 2
    assert solver.gains[0, 0, 0] == pytest.approx(-golden / (1 + golden), rel=1e-12)
