"""When a cycle visits the coarser grids, and what it records of each visit."""

import math
from itertools import pairwise

import pytest

from ocp import LBFGS, MGOPT, Always, Cycle, Earned, Scheduled, Stop, Transfer, minimize


def test_always_visits_at_once_and_does_not_wait():
    assert Always().patience == 0
    assert [Always().after(0, paid)[0] for paid in (True, False)] == [0, 0]
    assert Always().floor(3.0) == -math.inf


def test_earned_waits_first_then_twice_as_long_after_each_visit_that_did_not_pay():
    visits = Earned(patience=2, longest=10)
    wait = patience = visits.patience
    waits = [wait]
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    assert waits == [2, 2, 4, 8, 10]
    assert visits.after(patience, paid=True)[0] == 0


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        (Always(), list(range(20))),
        (Earned(patience=2), [2, 5, 10, 19]),
        (Earned(patience=2, longest=3), [2, 5, 9, 13, 17]),
        (Earned(patience=100), []),
    ],
)
def test_visits_that_do_not_pay_become_rare(visits, expected, wrong_corrections, lqr, started, run, on_shifted):
    objective, start = started(lqr)
    states = run(Cycle(2, on_shifted(), visits=visits), objective, start, 20)
    refused = [state.counts.get("refused", 0) for state in states]
    assert [k for k, (before, after) in enumerate(pairwise(refused)) if after > before] == expected


def test_each_correction_within_a_cycle_is_an_opportunity(wrong_corrections, lqr, started, run, on_shifted):
    """The waits of 1, 1, 2, 4 and 8 opportunities end at 1, 3, 6, 11 and 20, of which each W-cycle has two."""
    objective, start = started(lqr)
    states = run(Cycle(2, on_shifted(), shape="W", visits=Earned(patience=1)), objective, start, 12)
    refused = [state.counts.get("refused", 0) for state in states]
    assert [k for k, (before, after) in enumerate(pairwise(refused)) if after > before] == [0, 1, 3, 5, 10]


@pytest.mark.parametrize(("ratio", "visits", "skipped"), [(0.0, 4, 0), (1.01, 0, 4)])
def test_a_derivative_that_is_rough_in_time_is_not_worth_a_visit(ratio, visits, skipped, models, lqr, started, run):
    objective, start = started(lqr)
    last = run(Cycle(2, visits=Always(), visit_ratio=ratio), objective, start, 4)[-1]
    assert (len(models), last.counts["skipped"]) == (visits, skipped)


def test_every_correction_is_recorded_as_a_visit_with_what_it_cost_and_gained(problem, started, run):
    objective, start = started(problem, move=0.1)
    before = objective.work.units
    last = run(Cycle(3, visits=Always(), visit_ratio=0.0), objective, start, 4)[-1]
    assert len(last.visits) == last.counts["corrections"] + last.counts["refused"] > 0
    assert {(v.steps, v.coarse) for v in last.visits} == {(16, 8), (8, 4)}
    for v in last.visits:
        assert before <= v.begin < v.end <= objective.work.units
        assert (v.step > 0) == (v.decrease > 0)
        assert v.expected >= 0


def test_the_mismatch_of_a_visit_is_what_the_coarse_derivative_misses(lqr, started, run, on_shifted):
    objective, start = started(lqr)
    (visit,) = run(Cycle(2, on_shifted(LBFGS()), visits=Always()), objective, start, 1)[-1].visits
    coarse = objective.on(visit.coarse)
    transfer = Transfer(objective.space, coarse.space)
    restricted = transfer.restrict_dual(objective.derivative(start))
    missed = coarse.space.dual_norm(coarse.derivative(transfer.restrict(start)) - restricted)
    assert visit.mismatch == pytest.approx(missed / coarse.space.dual_norm(restricted), rel=1e-12)


def test_visits_of_a_run_are_in_its_result_in_the_order_of_work(classification):
    result = minimize(classification, 16, MGOPT(3, visits=Always(), refine=Scheduled(3)), stop=Stop(max_iterations=9))
    ends = [visit.end for visit in result.visits]
    assert len(ends) == result.counts["corrections"] + result.counts.get("refused", 0)
    assert ends == sorted(ends)
