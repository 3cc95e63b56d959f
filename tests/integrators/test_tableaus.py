"""Runge-Kutta tableaus check themselves."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ocp.integrators.tableaus import (
    BACKWARD_EULER,
    CRANK_NICOLSON,
    DOPRI5,
    EULER,
    HEUN,
    IMPLICIT_MIDPOINT,
    MIDPOINT,
    RK4,
    SDIRK2,
    Tableau,
)

EXPLICIT = [EULER, MIDPOINT, HEUN, RK4, DOPRI5]
IMPLICIT = [BACKWARD_EULER, IMPLICIT_MIDPOINT, CRANK_NICOLSON, SDIRK2]
each = pytest.mark.parametrize("tableau", [*EXPLICIT, *IMPLICIT], ids=lambda tableau: tableau.name)

RALSTON = ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)
THREE_EIGHTHS = ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)


@each
def test_the_weights_add_up_to_one(tableau):
    assert sum(tableau.b) == pytest.approx(1.0, rel=1e-15)


@each
def test_stage_times_are_row_sums(tableau):
    assert tableau.c == tuple(sum(row) for row in tableau.A)


@pytest.mark.parametrize(("coefficients", "order"), [(RALSTON, 3), (THREE_EIGHTHS, 4)], ids=["Ralston", "3/8 rule"])
def test_other_schemes_of_the_literature_are_taken(coefficients, order):
    assert Tableau("other", *coefficients, order=order).order == order


@pytest.mark.parametrize(
    ("tableau", "order"),
    [
        *((EULER, 2), (MIDPOINT, 3), (HEUN, 4), (RK4, 5)),
        *((BACKWARD_EULER, 2), (IMPLICIT_MIDPOINT, 3), (CRANK_NICOLSON, 3), (SDIRK2, 3)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_scheme_that_claims_a_higher_order_than_it_has_is_refused(tableau, order):
    with pytest.raises(ValueError, match=rf"{tableau.name}: an order-{tableau.order + 1} condition expects .*, got"):
        replace(tableau, order=order)


@each
def test_a_wrong_weight_is_refused(tableau):
    with pytest.raises(ValueError, match=rf"{tableau.name}: an order-1 condition expects 1.0, got 1.001"):
        replace(tableau, b=(*tableau.b[:-1], tableau.b[-1] + 1e-3))


@pytest.mark.parametrize(
    ("A", "order"),
    [
        (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.001)), 2),
        (((), (0.5,), (0.1, 0.4), (0.0, 0.0, 1.0)), 3),
        (((), (0.5,), (0.0, 0.5), (0.1, -0.1, 1.0)), 3),
    ],
    ids=["row sum", "third row", "fourth row"],
)
def test_a_wrong_coefficient_is_refused(A, order):
    with pytest.raises(ValueError, match=f"rk4: an order-{order} condition expects"):
        replace(RK4, A=A)


def four_stages(last=1.0, cubic=1 / 4, inner=1 / 8, square=1 / 12):
    """Coefficients that solve the conditions b 1 = 1, b c = 1/2, b c^2 = 1/3, b A c = 1/6 and those given:

    b c^3 = cubic, (b c) A c = inner, b A c^2 = square. With the last stage time 1 the eighth condition follows.
    """
    c = np.array([0, 1 / 3, 2 / 3, last])
    b = np.linalg.solve(np.vander(c, increasing=True).T, [1, 1 / 2, 1 / 3, cubic])
    rows = np.array([[b[2] * c[1], b[3] * c[1], b[3] * c[2]]] * 3)
    rows[1] *= c[[2, 3, 3]]
    rows[2] *= c[[1, 1, 2]]
    a32, a42, a43 = np.linalg.solve(rows, [1 / 6, inner, square])
    return ((), (c[1],), (c[2] - a32, a32), (c[3] - a42 - a43, a42, a43)), tuple(b)


def test_four_stages_that_solve_all_conditions_are_the_three_eighths_rule():
    A, b = four_stages()
    assert A[3] == pytest.approx(THREE_EIGHTHS[0][3])
    assert b == pytest.approx(THREE_EIGHTHS[1])
    assert Tableau("solved", A, b, order=4).order == 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"cubic": 0.26}, "0.25"), ({"inner": 0.13}, "0.125"), ({"square": 0.09}, "0.0833"), ({"last": 0.9}, "0.0416")],
    ids=["b c^3", "(b c) A c", "b A c^2", "b A A c"],
)
def test_each_condition_of_order_four_is_checked(change, expected):
    A, b = four_stages(**change)
    assert Tableau("solved", A, b, order=3).order == 3
    with pytest.raises(ValueError, match=f"solved: an order-4 condition expects {expected}"):
        Tableau("solved", A, b, order=4)


@pytest.mark.parametrize(("i", "j"), [(i, j) for i in range(1, 6) for j in range(i)])
def test_a_wrong_coefficient_of_dormand_and_prince_is_refused(i, j):
    A = [list(row) for row in DOPRI5.A]
    A[i][j] += 1e-3
    with pytest.raises(ValueError, match=r"dopri5: an order-\d condition expects"):
        replace(DOPRI5, A=tuple(map(tuple, A)))


def order_five_weights(A, b):
    """Elementary weights of order 5 and what they have to be: Hairer, Norsett & Wanner (1993), table II.2.2."""
    A = np.array([[*row, *[0.0] * (len(b) - len(row))] for row in A])
    c = A.sum(1)
    vectors = [c**4, c**2 * (A @ c), c * (A @ c**2), c * (A @ A @ c), (A @ c) ** 2]
    vectors += [A @ c**3, A @ (c * (A @ c)), A @ A @ c**2, A @ A @ A @ c]
    return np.array([b @ v for v in vectors]), 1 / np.array([5, 10, 15, 30, 20, 20, 40, 60, 120])


def test_dormand_and_prince_have_the_elementary_weights_of_order_five():
    weights, expected = order_five_weights(DOPRI5.A, np.array(DOPRI5.b))
    np.testing.assert_allclose(weights, expected, rtol=1e-13)


@each
def test_the_diagonal_is_zero_at_explicit_stages_only(tableau):
    assert tableau.diagonal == tuple((*row, 0.0)[i] for i, row in enumerate(tableau.A))
    assert any(tableau.diagonal) == (tableau in IMPLICIT)


def test_a_diagonally_implicit_scheme_of_the_literature_is_taken():
    # Crouzeix (1975): two stages with the same diagonal and order 3.
    g = (3 + 3**0.5) / 6
    assert Tableau("Crouzeix", ((g,), (1 - 2 * g, g)), (0.5, 0.5), order=3).diagonal == (g, g)


@pytest.mark.parametrize(
    ("A", "lengths"),
    [
        (RK4.A[:3], "[0, 1, 2]"),
        (((), (0.5,), (0.5,), (0.0, 0.0, 1.0)), "[0, 1, 1, 3]"),
        (((0.5, 0.5), *RK4.A[1:]), "[2,"),
    ],
    ids=["a row less", "a short row", "a long row"],
)
def test_rows_that_are_not_lower_triangular_are_refused(A, lengths):
    message = f"A: expected 4 rows of lengths 0, 1, ... where explicit, 1, 2, ... where implicit, got lengths {lengths}"
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(RK4, A=A)
