"""Several processes on parts of the samples: the same result on all, and that of one process up to rounding."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import nn

import ocp
from ocp import (
    LBFGS,
    MGOPT,
    Batches,
    Checkpoint,
    ControlProblem,
    CrossEntropy,
    Cycle,
    GradientDescent,
    LeastSquares,
    Nested,
    NonlinearCG,
    Result,
    Scheduled,
    Status,
    Stop,
    Tikhonov,
    TorchOptimizer,
    Watch,
    discretize,
    minimize,
    residual_network,
)
from ocp.cli.commands import main
from ocp.objective.processes import SERIAL
from ocp.objective.reduced import ReducedObjective
from ocp.problem.layers import Dense

#: Seconds that only a hang takes, even on a machine with much else to do.
HANG = 120
N = 8
ADAM = TorchOptimizer(torch.optim.Adam, {"lr": 0.02})


@dataclass
class Room:
    """Where threads meet to exchange what they have."""

    size: int
    exchanges: int = 0

    def __post_init__(self):
        self.barrier, self.slots = threading.Barrier(self.size), [None] * self.size

    def exchange(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait(HANG)
        found = list(self.slots)
        self.exchanges += rank == 0
        self.barrier.wait(HANG)
        return found


@dataclass(frozen=True)
class Thread:
    """One of several threads as a process."""

    rank: int
    room: Room
    sizes: list = field(default_factory=list)

    @property
    def size(self):
        return self.room.size

    def weighted_sum(self, share, *tensors):
        self.sizes.append(sum(t.numel() for t in tensors))
        parts = self.room.exchange(self.rank, [share * t for t in tensors])
        return tuple(sum(pieces) for pieces in zip(*parts, strict=True))

    def maximum(self, *numbers):
        return tuple(max(values) for values in zip(*self.room.exchange(self.rank, numbers), strict=True))

    def broadcast(self, data):
        return self.room.exchange(self.rank, data)[0]


def together(size, job):
    """What a job returns, or raises, on each of several processes."""
    room = Room(size)
    found = [None] * size

    def run(process):
        try:
            found[process.rank] = job(process)
        except Exception as error:
            found[process.rank] = error
            room.barrier.abort()

    threads = [threading.Thread(target=run, args=(Thread(rank, room),)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def learning(samples=23):
    inputs = torch.rand(samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    labels = (inputs[:, 1] > inputs[:, 0] ** 2 - 0.3).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opening, closing = nn.Linear(2, 3), nn.Linear(3, 2)
    return residual_network(inputs, CrossEntropy(labels), Dense(3), opening, closing, control_cost=Tikhonov(1e-2))


PROBLEM = learning()
#: One for each process: here they are threads, and torch lends a module's parameters to one call at a time.
COPIES = [copy.deepcopy(PROBLEM) for _ in range(4)]
RUNS = {
    "gradient descent": (GradientDescent(), {}),
    "conjugate gradients": (NonlinearCG(), {}),
    "L-BFGS": (LBFGS(), {}),
    "cycles": (Cycle(3), {}),
    "nested": (Nested(3), {}),
    "MG/OPT": (MGOPT(3), {}),
    "Adam": (ADAM, {"batches": Batches(11)}),
    "nested Adam": (Nested(3, ADAM, refine=Scheduled(4)), {"batches": Batches(5)}),
}
every_run = pytest.mark.parametrize(("method", "settings"), RUNS.values(), ids=RUNS.keys())


@pytest.mark.parametrize("size", [2, 3])
@every_run
@pytest.mark.cover(1)
def test_processes_agree_to_the_last_bit_and_with_one_process_up_to_rounding(method, settings, size):
    settings = {"stop": Stop(tolerance=1e-9, max_iterations=12), **settings}

    def job(p):
        problem = COPIES[p.rank]
        return minimize(problem, N, method, processes=p, watch=Watch(validation=problem), **settings)

    alone = minimize(PROBLEM, N, method, watch=Watch(validation=PROBLEM), **settings)
    results = together(size, job)
    for result in results:
        assert torch.equal(result.control.flat, results[0].control.flat)
        assert result.iterations == alone.iterations
        assert result.work_units == pytest.approx(alone.work_units)
        assert result.value == pytest.approx(alone.value, rel=1e-9)
        assert result.validation_accuracy == alone.validation_accuracy
        assert torch.allclose(result.control.flat, alone.control.flat, rtol=1e-6, atol=1e-7)


@dataclass(frozen=True)
class Part:
    """One of several processes, of which nobody adds up what they have."""

    rank: int
    size: int

    def weighted_sum(self, share, *tensors):
        return tuple(share * t for t in tensors)


@pytest.mark.parametrize("size", [2, 3, 23])
def test_value_derivative_and_hessian_of_all_samples_are_the_sums_of_the_parts(size, rand):
    whole = discretize(PROBLEM, N)
    u, v = whole.discretization.start().flat, rand(whole.space.dimension)
    parts = [ReducedObjective(whole.discretization, processes=Part(rank, size)) for rank in range(size)]
    assert sum(p.value(u) for p in parts) == pytest.approx(whole.value(u), rel=1e-13)
    assert sum(p.directional(u, v) for p in parts) == pytest.approx(whole.directional(u, v), rel=1e-12)
    assert torch.allclose(sum(p.derivative(u) for p in parts), whole.derivative(u), rtol=1e-12, atol=1e-15)
    product = sum(p.hessian_product(u, v) for p in parts)
    assert torch.allclose(product, whole.hessian_product(u, v), rtol=1e-12, atol=1e-15)


def test_the_trajectory_on_each_process_is_that_of_all_samples():
    whole = discretize(PROBLEM, N)
    u = whole.discretization.start().flat
    expected, found = (o.trajectory(u) for o in (whole, ReducedObjective(whole.discretization, processes=Part(1, 2))))
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.gradient, expected.gradient)


def test_a_batch_with_fewer_samples_than_processes_leaves_some_without_work():
    whole = discretize(PROBLEM, N)
    u, few = whole.discretization.start().flat, torch.tensor([4])

    def job(process):
        part = ReducedObjective(whole.discretization, processes=process).take(few)
        return part.derivative(u), part.value(u)

    for derivative, value in together(3, job):
        assert value == pytest.approx(whole.take(few).value(u), rel=1e-13)
        assert torch.allclose(derivative, whole.take(few).derivative(u), rtol=1e-12, atol=1e-15)


def test_value_and_derivative_take_one_exchange_of_as_many_numbers_and_one():
    whole = discretize(PROBLEM, N)
    u = whole.discretization.start().flat

    def job(process):
        shared = ReducedObjective(whole.discretization, processes=process)
        shared.value_and_derivative(u)
        return process.sizes

    assert together(2, job) == [[whole.space.dimension + 1]] * 2


def test_work_is_shared_among_processes():
    rows = []

    class Counted(Dense):
        def __call__(self, t, x, u):
            rows.append(len(x))
            return super().__call__(t, x, u)

    problem = ControlProblem(Counted(2), torch.ones(20, 2).double(), LeastSquares(torch.zeros(20, 2).double()))
    whole = discretize(problem, N)
    rows.clear()
    together(4, lambda p: ReducedObjective(whole.discretization, processes=p).value(torch.zeros(N * 6).double()))
    assert set(rows) == {5}


def test_one_process_that_wants_to_stop_stops_all():
    def job(process):
        def callback(record, control):
            return record.iteration == 3 and process.rank == 1

        return minimize(COPIES[process.rank], N, LBFGS(), processes=process, watch=Watch(callback=callback))

    assert [(r.status, r.iterations) for r in together(3, job)] == [(Status.STOPPED, 3)] * 3


def test_the_slowest_clock_decides_for_all(monkeypatch):
    clock = threading.local()

    def seconds():
        """Each process looks at a clock of its own, which has gone on since it last looked."""
        clock.now = getattr(clock, "now", 0.0) + clock.pace
        return clock.now

    def job(process):
        clock.pace = 0.1 if process.rank == 1 else 0.01
        settings = {"processes": process, "stop": Stop(max_seconds=0.5, tolerance=0.0)}
        return minimize(COPIES[process.rank], N, LBFGS(), **settings)

    monkeypatch.setattr("ocp.run.bookkeeping.time", SimpleNamespace(perf_counter=seconds))
    one, two = together(2, job)
    assert one.status is two.status is Status.MAX_SECONDS
    assert one.iterations == two.iterations
    assert one.seconds < 0.5 <= two.seconds


def test_an_error_in_one_process_ends_the_others():
    def job(process):
        def fail(record, control):
            if record.iteration == 2 and process.rank == 1:
                raise LookupError("mine")

        return minimize(COPIES[process.rank], N, LBFGS(), processes=process, watch=Watch(callback=fail))

    other, own = together(2, job)
    assert isinstance(own, LookupError)
    assert isinstance(other, threading.BrokenBarrierError)
    assert other.result.value in [record.value for record in own.result.history]


def test_costs_that_are_sums_over_the_samples_are_refused():
    problem = ControlProblem(Dense(2), torch.ones(6, 2).double(), lambda x: (x - 3).square().sum())
    errors = together(2, lambda p: minimize(problem, N, LBFGS(), processes=p))
    assert all("terminal_cost: expected an average over the samples" in str(error) for error in errors)


def test_more_processes_than_samples_are_refused():
    errors = together(3, lambda p: minimize(learning(2), N, LBFGS(), processes=p))
    assert all("processes: expected at most one for each of the 2 samples, got 3" in str(error) for error in errors)


@pytest.mark.parametrize("again", [1, 2, 3])
def test_a_run_goes_on_with_another_number_of_processes(again, tmp_path):
    def part(process, iterations, resume):
        checkpoint = Checkpoint(tmp_path, seconds=0.0, resume=resume)
        stop = Stop(tolerance=1e-9, max_iterations=iterations)
        return minimize(COPIES[process.rank], N, LBFGS(), processes=process, stop=stop, checkpoint=checkpoint)

    whole = minimize(PROBLEM, N, LBFGS(), stop=Stop(tolerance=1e-9, max_iterations=16))
    together(2, lambda p: part(p, 6, False))
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("*.ocp")}
    assert sorted(saved) == [f"{k:09d}.ocp" for k in (4, 5, 6)]

    def job(process):
        return part(process, 16, True)

    for result in together(again, job) if again > 1 else [job(SERIAL)]:
        assert not isinstance(result, Exception), result
        assert result.value == pytest.approx(whole.value, rel=1e-9)
        assert result.iterations == whole.iterations


# Under a launcher

SOURCE = """
import os
import torch
from ocp import CrossEntropy, FunctionDynamics, Study, residual_network
from ocp.problem.layers import Dense

class Mortal(Dense):
    made = 0

    def __call__(self, t, x, u):
        Mortal.made += 1
        if os.environ.get("RANK", "none") == os.environ.get("DIES") and Mortal.made == 100:
            os._exit(9)
        return super().__call__(t, x, u)

def problem():
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    return Study(residual_network(x, CrossEntropy((x[:, 0] > x[:, 1]).long()), Mortal(2)), steps=8, levels=3)
"""


def start(folder, command, environment):
    """A process in a folder that takes the package from here and computes in one thread."""
    (folder / "mine.py").write_text(SOURCE)
    paths = os.pathsep.join([str(Path(ocp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes)


def launch(folder, *arguments, interrupt=False):
    """Solve under torch's launcher, interrupted once there are checkpoints; the exit code and what was printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with start(folder, [*launcher, "-m", "ocp", "solve", "mine.py", *map(str, arguments)], {}) as run:
        if interrupt:
            end = time.monotonic() + HANG
            while run.poll() is None and not list(folder.glob("saves/*.ocp")) and time.monotonic() < end:
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        printed = run.communicate(timeout=HANG)[0]
    return run.returncode, printed


def without_launcher(folder, *arguments, dies):
    """Solve by two processes, of which one dies; the exit codes and what was printed.

    A launcher would end the other one, perhaps before it has said what it waits for.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "DIES": str(dies)}
    runs = [
        start(
            folder,
            ["-m", "ocp", "solve", "mine.py", *map(str, arguments)],
            {**group, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        )
        for rank in range(2)
    ]
    printed = [run.communicate(timeout=HANG)[0] for run in runs]
    return [run.returncode for run in runs], printed


@pytest.fixture
def solve(tmp_path, monkeypatch):
    """Solve the same problem in this process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    return lambda *arguments: CliRunner().invoke(main, ["solve", "mine.py", *map(str, arguments)])


LIMIT = ("--method", "single", "--max-iterations", 15)


@pytest.mark.slow
def test_the_launcher_gives_the_result_of_one_process(tmp_path, solve):
    assert solve(*LIMIT, "--out", "one").exit_code == 0
    code, printed = launch(tmp_path, *LIMIT, "--out", "two")
    assert code == 0, printed
    one, two = (Result.load(tmp_path / name) for name in ("one", "two"))
    assert two.value == pytest.approx(one.value, rel=1e-9)
    assert two.iterations == one.iterations
    assert printed.count("written to") == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_leaves_a_checkpoint(tmp_path, solve):
    assert solve(*LIMIT, "--out", "one").exit_code == 0
    saves = ("--checkpoint", "saves", "--every", 1)
    codes, printed = without_launcher(tmp_path, *LIMIT, *saves, "--out", "dead", dies=1)
    assert codes[0] not in (0, 9), printed
    assert codes[1] == 9, printed
    assert "processes: expected an answer from all, but one has ended" in printed[0]
    again = solve(*LIMIT, *saves, "--resume", "--out", "again")
    assert again.exit_code == 0, again.output
    one, two = (Result.load(tmp_path / name) for name in ("one", "again"))
    assert two.value == pytest.approx(one.value, rel=1e-9)
    assert two.iterations == one.iterations


@pytest.mark.slow
def test_an_interrupt_under_the_launcher_ends_all_after_a_step_and_the_run_can_be_resumed(tmp_path, solve):
    run = ("--method", "single", "--smoother", "gd", "--tolerance", 0, "--checkpoint", "saves", "--every", 1)
    code, printed = launch(tmp_path, *run, "--max-iterations", 10**6, "--out", "one", interrupt=True)
    assert code != 0
    assert "INTERRUPTED" in printed
    assert "expected an answer from all" not in printed
    ended = Result.load(tmp_path / "one")
    assert ended.status is Status.INTERRUPTED
    assert int(max((tmp_path / "saves").glob("*.ocp")).stem) == ended.iterations
    more = ("--resume", "--max-iterations", ended.iterations + 2)
    again = solve(*run, *more, "--out", "two")
    assert f"resumed: at iteration {ended.iterations}" in again.output
