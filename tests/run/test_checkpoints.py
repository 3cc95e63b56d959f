"""Checkpoints: a run that is taken up again is the run that was never interrupted; what is damaged is refused."""

import errno
import multiprocessing
import os
import random
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ocp.problems import lqr
from torch import nn

from ocp import (
    LBFGS,
    MGOPT,
    Adaptive,
    Always,
    Batches,
    Checkpoint,
    ControlProblem,
    CrossEntropy,
    Cycle,
    Forgetful,
    GradientDescent,
    Nested,
    NewtonCG,
    NonlinearCG,
    QuadraticRunning,
    Scheduled,
    SciPy,
    State,
    Status,
    Stop,
    StrongWolfe,
    Target,
    Tikhonov,
    TorchOptimizer,
    Watch,
    minimize,
    residual_network,
)
from ocp.adjoint import sweeps
from ocp.problem.layers import Dense
from ocp.run.snapshots import VERSION
from ocp.space.bounds import as_bounds

N = 8
ADAM = TorchOptimizer(torch.optim.Adam, {"lr": 0.02})


def control():
    return ControlProblem(
        lambda t, x, u: u - x**3,
        torch.tensor([[1.0, -0.5]], dtype=torch.float64),
        lambda x: x.square().sum(),
        running_cost=QuadraticRunning(1.0, 0.5),
        control_size=1,
        bounds=(-0.6, None),
    )


def learning(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 2 - 1
    labels = (inputs[:, 1] > inputs[:, 0] ** 2 - 0.3).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opening, closing = nn.Linear(2, 3), nn.Linear(3, 2)
    return residual_network(inputs, CrossEntropy(labels), Dense(3), opening, closing, control_cost=Tikhonov(1e-3))


@dataclass(frozen=True)
class Restless:
    """A method of somebody's own: gradient steps with noise, and a memory of plain containers."""

    def init(self, objective, point):
        return State(point, {"steps": 0, "values": (), 3: [None, True, torch.zeros(2)], "where": point.control})

    def step(self, objective, state):
        assert torch.equal(state.control, state.memory["where"])
        gradient = objective.space.gradient(state.point.derivative)
        noise = 1e-3 * torch.randn(gradient.shape, dtype=gradient.dtype)
        point = objective.at(state.control - 0.1 * (gradient + noise))
        memory = {**state.memory, "steps": state.memory["steps"] + 1, "values": (point.value, float("inf"))}
        return replace(state, point=point, memory={**memory, "where": point.control})

    def transport(self, memory, transfer):
        return memory


THREE = Scheduled(3)
RUNS = {
    "gradient descent": (control, N, GradientDescent(), {}),
    "conjugate gradients": (control, N, NonlinearCG(), {}),
    "L-BFGS": (control, N, LBFGS(), {}),
    "L-BFGS, sparse records": (control, N, LBFGS(), {"watch": Watch(every=4)}),
    "Newton": (control, N, NewtonCG(), {}),
    "Newton, sparse records": (control, N, NewtonCG(), {"watch": Watch(every=4)}),
    "SciPy": (control, N, SciPy(iterations=1), {}),
    "V-cycles": (control, N, Cycle(3, GradientDescent(), visits=Always()), {}),
    "W-cycles": (learning, 4, Cycle(3, shape="W"), {}),
    "nested": (learning, 4, Nested(3, refine=THREE), {}),
    "forgetful nested": (learning, 4, Nested(3, Forgetful(LBFGS()), refine=THREE), {}),
    "MG/OPT": (learning, 4, MGOPT(3, refine=THREE), {}),
    "MG/OPT, default": (control, N, None, {}),
    "MG/OPT, conjugate gradients": (learning, 4, MGOPT(3, NonlinearCG(), post=1), {"watch": Watch(every=3)}),
    "Adam": (learning, 4, ADAM, {"batches": Batches(5, seed=3)}),
    "momentum": (learning, 4, TorchOptimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), {"batches": Batches(7)}),
    "torch's L-BFGS": (learning, 4, TorchOptimizer(torch.optim.LBFGS, {"max_iter": 2}), {}),
    "nested Adam": (learning, 4, Nested(3, ADAM, refine=THREE), {"batches": Batches(5)}),
    "adaptive": (lambda: lqr.problem().problem, Adaptive(1e-3, first=4), LBFGS(), {}),
    "adaptive MG/OPT": (lambda: lqr.problem().problem, Adaptive(1e-3, first=4), MGOPT(2), {}),
    "a method of one's own": (control, N, Restless(), {}),
}


class Killed(BaseException):
    """Something that ends a run at once."""


def kill(iteration):
    def callback(record, control):
        if record.iteration >= iteration:
            raise Killed

    return callback


L_BFGS, WATCH, SEVEN = LBFGS(), Watch(), Stop(tolerance=1e-7, max_iterations=7)


def watching(callback, watch=WATCH, **settings):
    """What is watched under some settings, together with a callback."""
    return replace(watch, callback=callback)


def run(folder, make=control, steps=N, method=L_BFGS, resume=False, **settings):
    torch.manual_seed(0)
    checkpoint = Checkpoint(folder, seconds=0.0, resume=resume)
    settings = {"stop": Stop(tolerance=1e-7, max_iterations=12), "checkpoint": checkpoint, **settings}
    return minimize(make(), steps, method, **settings)


@cache
def undisturbed(name="L-BFGS"):
    """What a run finds that is neither saved nor interrupted."""
    make, steps, method, settings = RUNS[name]
    return run("nowhere", make, steps, method, **settings, checkpoint=None)


def same(one, two):
    """Whether two results are the same to the last bit, but for their seconds."""
    assert torch.equal(one.control.flat, two.control.flat)
    assert [replace(r, seconds=0.0) for r in one.history] == [replace(r, seconds=0.0) for r in two.history]
    for name in ("value", "derivative_norm", "status", "iterations", "work_units", "counts", "message"):
        assert getattr(one, name) == getattr(two, name)


@pytest.mark.parametrize("iteration", [1, 5])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.cover(1)
def test_a_run_that_was_killed_and_then_ended_by_a_limit_ends_as_one_that_was_never_saved(name, iteration, tmp_path):
    make, steps, method, settings = RUNS[name]
    whole = undisturbed(name)
    deadly = kill(min(iteration, whole.iterations - 1))
    with pytest.raises(Killed):
        run(tmp_path, make, steps, method, **{**settings, "watch": watching(deadly, **settings)})
    torch.manual_seed(17)
    ended, again = (run(tmp_path, make, steps, method, **settings, stop=SEVEN, resume=True) for _ in range(2))
    same(ended, again)
    same(run(tmp_path, make, steps, method, **settings, resume=True), whole)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Makes a folder of what a run left that was killed."""
    original = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        run(original, watch=Watch(callback=kill(6)))
    return partial(shutil.copytree, original, dirs_exist_ok=True)


def test_the_last_few_checkpoints_are_kept(killed, tmp_path):
    killed(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.ocp")) == [f"{k:09d}.ocp" for k in (4, 5, 6)]


def test_checkpoints_are_made_every_so_many_iterations_and_at_the_end(tmp_path):
    run(tmp_path, stop=SEVEN, checkpoint=Checkpoint(tmp_path, 3, seconds=0.0, keep=9))
    assert sorted(int(path.stem) for path in tmp_path.glob("*.ocp")) == [0, 3, 6, 7]


def test_checkpoints_are_made_every_so_many_seconds_and_at_the_end(tmp_path, monkeypatch):
    iterations_of_four_seconds = Watch(callback=lambda record, control: passed.append(4.0))
    passed = []
    monkeypatch.setattr("ocp.run.checkpoints.time", SimpleNamespace(monotonic=lambda: sum(passed)))
    checkpoint = Checkpoint(tmp_path, seconds=10.0, keep=9)
    run(tmp_path, stop=SEVEN, checkpoint=checkpoint, watch=iterations_of_four_seconds)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.ocp")) == [0, 3, 6, 7]


def test_a_run_can_be_taken_up_before_its_last_checkpoint(killed, tmp_path):
    killed(tmp_path / "two")
    same(run(tmp_path / "two", resume=tmp_path / "two" / "000000004.ocp"), undisturbed())


def test_to_resume_where_there_is_nothing_is_to_begin(tmp_path):
    same(run(tmp_path, resume=True), undisturbed())


def test_a_result_tells_where_its_run_was_taken_up(killed, tmp_path):
    killed(tmp_path)
    result = run(tmp_path, resume=True)
    assert result.about["resumed"] == 6
    assert "             resumed: at iteration 6\n" in str(result)
    assert "resumed" not in str(run(tmp_path / "new", resume=True))


def test_a_target_can_be_set_for_what_is_left(killed, tmp_path):
    killed(tmp_path)
    target = Target("value", 10.0)
    assert run(tmp_path, resume=True, stop=Stop(target=target)).status is Status.TARGET


def resumed(folder):
    return Checkpoint(folder, resume=True)


REFUSED = {
    "another method": (
        {"method": GradientDescent()},
        r"resume: expected the method as in .*6\.ocp, LBFGS, got GradientDescent",
    ),
    "another setting": (
        {"method": LBFGS(pairs=3)},
        r"resume: expected the method\.pairs as in .*6\.ocp, 20, got 3$",
    ),
    "another setting of a part": (
        {"method": LBFGS(search=StrongWolfe(c2=0.5))},
        r"expected the method\.search\.c2 as in .*6\.ocp, 0\.9, got 0\.5$",
    ),
    "another grid and method": ({"steps": 16, "method": GradientDescent()}, "expected the steps of the first grid"),
    "another grid": ({"steps": 16}, "resume: expected the steps of the first grid as in"),
    "another scheme": ({"integrator": "rk4"}, "resume: expected the integrator as in"),
    "other bounds": (
        {"problem": replace(control(), bounds=as_bounds((-0.1, 0.1)))},
        "resume: expected the bounds as in",
    ),
    "another name": (
        {"checkpoint": lambda folder: Checkpoint(folder, name="seed 1", resume=True)},
        r"resume: expected the name as in .*6\.ocp, none, got seed 1$",
    ),
    "another problem": (
        {"problem": replace(control(), running_cost=QuadraticRunning(2.0, 0.5))},
        "resume: expected the problem that was saved",
    ),
    "a new run": ({"checkpoint": Checkpoint}, "checkpoint: expected a folder without checkpoints for a new run"),
    "no such file": (
        {"checkpoint": lambda folder: Checkpoint(folder, resume="nowhere.ocp")},
        r"resume: expected a checkpoint, of which .* has 0.*6\.ocp, .*, got nowhere\.ocp$",
    ),
    "no path": ({"checkpoint": 3}, "checkpoint: expected a Checkpoint or a path, got int"),
    "an empty path": ({"checkpoint": ""}, "folder: expected a path, got ''"),
    "neither true nor a path": (
        {"checkpoint": lambda folder: Checkpoint(folder, resume=1)},
        "resume: expected True, False or the path of a checkpoint, got 1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_a_checkpoint_is_refused_and_leaves_it_as_it_was(changes, message, killed, tmp_path):
    killed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ocp")}
    arguments = {"problem": control(), "steps": N, "method": LBFGS(), "checkpoint": resumed, **changes}
    make = arguments.pop("checkpoint")
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        minimize(**arguments, checkpoint=make(tmp_path) if callable(make) else make)
    assert not hasattr(caught.value, "result")
    assert {path: path.read_bytes() for path in tmp_path.glob("*.ocp")} == before


@pytest.mark.parametrize("numbers", [{"every": 0}, {"every": 1.5}, {"every": "x"}, {"seconds": -1.0}, {"keep": 0}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match="every, seconds, keep: expected"):
        Checkpoint("folder", **numbers)


# Damage


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def newer(data):
    return data.replace(b"ocp %d " % VERSION, b"ocp 99 ", 1)


DAMAGES = {
    "truncated": (cut, "its checksum is wrong"),
    "empty": (lambda data: b"", "got 0 bytes of something else"),
    "a bit flipped": (flip, "its checksum is wrong"),
    "a newer version": (newer, "expected version .*, got version 99"),
    "something else": (lambda data: b"\x80\x04K\x01.", "of something else"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_offered(damage, message, killed, tmp_path):
    killed(tmp_path / "two")
    last, before = (tmp_path / "two" / f"{k:09d}.ocp" for k in (6, 5))
    last.write_bytes(damage(last.read_bytes()))
    offer = f"for the one before it take resume='{before}', or --resume-from {before}"
    with pytest.raises(ValueError, match=f"{last}: .*{message}.*; {offer}"):
        run(tmp_path / "two", resume=True)
    same(run(tmp_path / "two", resume=before), undisturbed())


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_what_ends_a_run_while_a_checkpoint_is_written_leaves_the_one_before(moment, error, tmp_path, monkeypatch):
    right, calls = {"open": Path.open, "fsync": os.fsync, "replace": os.replace}[moment], []

    def failing(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 9:
            raise error
        return right(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Path if moment == "open" else os, moment, failing)
        ended = None
        with suppress(Killed):
            ended = run(tmp_path / "two")
    assert ended is None or ended.status is Status.INTERRUPTED
    same(run(tmp_path / "two", resume=True), undisturbed())
    assert not list((tmp_path / "two").glob("*.part"))


def child(target, *arguments, **keywords):
    """A process of its own that makes a call."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, kwargs=keywords)
    process.start()
    return process


#: Seconds that only a hang takes, even on a machine with much else to do.
HANG = 120
AGAIN = {"resume": True, "stop": Stop(tolerance=0.0, max_iterations=60)}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    """More kills, of the digits: docs/benchmarks/soak.py."""
    whole, generator = run(tmp_path / "one", learning, N, MGOPT(3), **AGAIN), random.Random(0)

    def saved():
        return sorted(path.name for path in (tmp_path / "two").glob("*.ocp"))

    for _ in range(10):
        before, end = saved(), time.monotonic() + HANG
        process = child(run, tmp_path / "two", learning, N, MGOPT(3), **AGAIN)
        while process.is_alive() and saved() == before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.02))  # at any moment after the first checkpoint
        process.kill()
        process.join()
    assert len(saved()) > 0
    same(run(tmp_path / "two", learning, N, MGOPT(3), **AGAIN), whole)
    assert not list((tmp_path / "two").glob("*.part"))


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="checkpoint: not written to .*No space left"):
        result = run(tmp_path)
    assert result.counts["not_saved"] > 1
    same(replace(result, counts={}), replace(undisturbed(), counts={}))
    assert list(tmp_path.glob("*.ocp")) == []


def test_a_full_disk_ends_a_run_whose_checkpoints_are_required(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        result = run(tmp_path, checkpoint=Checkpoint(tmp_path, seconds=0.0, required=True))
    assert result.status is Status.NOT_SAVED
    assert not result.success


def test_a_last_checkpoint_that_is_required_and_cannot_be_written_is_no_success(tmp_path, monkeypatch):
    def leave(record, control):
        if record.iteration == 2:
            monkeypatch.setattr(os, "replace", full)

    checkpoint = Checkpoint(tmp_path, required=True)
    with pytest.warns(RuntimeWarning, match="No space left"):
        result = run(tmp_path, checkpoint=checkpoint, watch=Watch(callback=leave))
    assert result.status is Status.NOT_SAVED


def test_what_came_before_an_exception_is_saved(tmp_path):
    def fail(record, control):
        if record.iteration == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "broken", watch=Watch(callback=fail))
    result = run(tmp_path / "broken", resume=True)
    assert result.about["resumed"] == 5
    same(result, undisturbed())


def break_sweep(call, error, patch):
    """Raise an error in one of the forward sweeps."""
    forward, calls = sweeps.forward, []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return forward(*arguments)

    patch.setattr(sweeps, "forward", broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_a_run_just_after_its_first_step_loses_no_record(error, tmp_path, monkeypatch):
    """The value after the first step is computed to see whether it led up, before it is recorded."""
    whole = run(tmp_path, learning, N, ADAM, checkpoint=None)
    with monkeypatch.context() as patch, suppress(ZeroDivisionError):
        break_sweep(2, error, patch)
        result = run(tmp_path / "broken", learning, N, ADAM)
        assert (result.status, result.iterations, len(result.history)) == (Status.INTERRUPTED, 1, 1)
    same(run(tmp_path / "broken", learning, N, ADAM, resume=True), whole)


def test_an_interrupt_while_a_run_resumes_leaves_its_checkpoints(killed, tmp_path, monkeypatch):
    killed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ocp")}
    break_sweep(1, KeyboardInterrupt, monkeypatch)
    assert run(tmp_path, resume=True).status is Status.INTERRUPTED
    assert {path: path.read_bytes() for path in tmp_path.glob("*.ocp")} == before


def test_a_folder_that_vanishes_is_told_and_the_run_goes_on(tmp_path):
    def vanish(record, control):
        if record.iteration == 2:
            (tmp_path / "a").rename(tmp_path / "b")

    with pytest.warns(RuntimeWarning, match="checkpoint: not written"):
        result = run(tmp_path / "a", watch=Watch(callback=vanish))
    same(replace(result, counts={}), replace(undisturbed(), counts={}))


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_made_is_an_error_before_the_run(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"^checkpoint: expected a folder that can be written to, got .*{name} \(.+\)$"):
        run(tmp_path / name, watch=Watch(callback=kill(0)))


def test_a_folder_in_which_nothing_can_be_written_is_an_error_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=rf"checkpoint: expected a folder .* got {tmp_path} \(No space left on device\)"):
        run(tmp_path, watch=Watch(callback=kill(0)))


# Two runs


def test_a_second_run_on_the_folder_of_a_first_is_refused(tmp_path):
    def second(record, control_):
        with pytest.raises(ValueError, match=rf"no other run uses, got {tmp_path}, used by process {os.getpid()}"):
            run(tmp_path, resume=True)

    assert run(tmp_path, watch=Watch(callback=second)).status is undisturbed().status


def test_the_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    def die(record, control):
        os._exit(9)

    process = child(run, tmp_path, watch=Watch(callback=die))
    process.join()
    assert process.exitcode == 9
    assert f"process {process.pid}" in (tmp_path / "lock").read_text()
    assert run(tmp_path, resume=True).status is undisturbed().status


# Memories


class Strange:
    """Something that no checkpoint knows."""


@pytest.mark.parametrize("memory", [Strange(), {"a": [Strange()]}, lambda: None])
def test_a_memory_of_unknown_kind_is_refused_before_the_first_step(memory, tmp_path):
    @dataclass(frozen=True)
    class Own:
        def init(self, objective, point):
            return State(point, memory)

        def step(self, objective, state):
            raise AssertionError

        def transport(self, memory, transfer):
            return memory

    with pytest.raises(TypeError, match="checkpoint: expected a method that remembers tensors, numbers, strings"):
        run(tmp_path, control, N, Own())
