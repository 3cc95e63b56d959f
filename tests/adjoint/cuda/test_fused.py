"""Dense layers in one kernel, against the same steps in torch: on a CPU by Triton's interpreter, and on a GPU."""

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.paths import choose
from ocp.adjoint.recomputed import Recomputed
from ocp.adjoint.schedules import Binomial, StoreAll
from ocp.adjoint.staged import Staged
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.sweeps import adjoint, forward
from ocp.integrators.integrator import INTEGRATORS
from ocp.integrators.tableaus import EULER, HEUN
from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import LeastSquares, QuadraticRunning
from ocp.problem.layers import RELU, SMOOTH_RELU, TANH, Activation, Antisymmetric, Convolution, Dense
from ocp.space.grid import TimeGrid

triton = pytest.importorskip("triton", minversion="3.7")  # older interpreters fail with the numpy of today
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ocp.adjoint.cuda import fused as compiled  # noqa: E402  before the interpreter is asked for

STEPS = 5
#: Layers, and how many samples: less and more than a block of them, widths that fill their tiles and that do not.
CASES = {
    "one tile, padded": (Dense(3), 5),
    "one tile, full": (Dense(16, RELU), 16),
    "one tile, more blocks": (Dense(20, SMOOTH_RELU), 33),
    "antisymmetric": (Dense(5, RELU, Antisymmetric(0.3)), 17),
    "one large tile, full": (Dense(128), 4),
    "two tiles, padded": (Dense(130, SMOOTH_RELU), 3),
    "two tiles, full": (Dense(256), 2),
}
#: How torch has float32 multiplied, and the relative errors of states and of derivatives that are to be expected: some
#: units of 2^-p for factors of p bits, 24, 11 (TF32) or 8 (bfloat16); more where rounding switches the slope of a ReLU.
PRECISIONS = {"highest": (3e-7, 1e-6), "high": (2e-3, 2e-2), "medium": (1e-2, 1e-1)}


#: The shared memory of a block on the smallest card since Ampere, in bytes.
SHARED = 99 * 1024


def widened(dot):
    """The interpreter's product, which takes the bits of bfloat16 for whole numbers, on what they stand for."""

    def product(self, a, b, *rest):
        a, b = (self.cast_impl(x, triton.language.float32) if x.dtype.name == "bf16" else x for x in (a, b))
        return dot(self, a, b, *rest)

    return product


@pytest.fixture(scope="module")
def fused():
    """The module as Triton's interpreter runs it, beside the one that is compiled."""
    from triton.runtime.interpreter import InterpreterBuilder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "create_dot", widened(InterpreterBuilder.create_dot))
        spec = importlib.util.find_spec("ocp.adjoint.cuda.fused")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def precision(request):
    """How torch has float32 multiplied, for the time of a test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def exact(request, rand):
    """A discretization in double precision and its control."""
    layer, samples = request.param
    problem = ControlProblem(layer, rand(samples, layer.width), LeastSquares(rand(samples, layer.width)), horizon=2.0)
    generator = torch.Generator().manual_seed(1)
    control = torch.cat([layer.initial(generator, dtype=torch.float64) for _ in range(STEPS)])
    return Discretization(problem, TimeGrid(2.0, STEPS), INTEGRATORS["euler"]), control + 0.1 * rand(len(control))


@pytest.fixture
def on_a_card(monkeypatch):
    """What is asked of a state: as if it were on a card of this capability."""

    def state(dtype, capability):
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return SimpleNamespace(is_cuda=True, device="cuda", dtype=dtype)

    return state


def converted(discretization, *how):
    """The same discretization with data of another type or device."""
    problem = discretization.problem
    data = LeastSquares(problem.terminal_cost.target.to(*how))
    same = ControlProblem(problem.dynamics, problem.initial_state.x.to(*how), data, horizon=problem.horizon)
    return replace(discretization, problem=same)


def swept(discretization, control, steps):
    """States, the derivative by the control, and the costate at the start."""
    costates = []

    class Witness:
        end = property(lambda self: steps.end)
        forward = staticmethod(steps.forward)

        def backward(self, p, derivative):
            p = steps.backward(p, derivative)
            costates.append(p.clone())
            return p

    forward(discretization, control, Witness())
    states = steps.states.clone()
    return states, adjoint(discretization, control, Witness()), *costates


def accurate(found, expected, tolerances):
    """Whether states, and everything after them, are within their tolerances."""
    errors = [float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return errors[0] <= tolerances[0] and max(errors[1:]) <= tolerances[1]


def reference(discretization, control):
    x, u = discretization.problem.initial_state.x, discretization.space.path(control)[0]
    steps = choose(discretization, StoreAll(), x, u)
    assert type(steps) is Staged
    return swept(discretization, control, steps)


@pytest.mark.parametrize("precision", ["highest", "medium"], indirect=True)
def test_the_kernels_have_states_costates_and_derivatives_of_torch(exact, fused, precision):
    discretization, control = exact
    single, expected = converted(discretization, torch.float32), reference(discretization, control)
    steps = fused.Fused(single.grid, STEPS, single.problem.initial_state.x)
    assert accurate(swept(single, control.float(), steps), expected, PRECISIONS[precision])


def test_states_in_bfloat16_are_as_good_as_their_type(exact, fused):
    discretization, control = exact
    small, expected = converted(discretization, torch.bfloat16), reference(discretization, control)
    steps = fused.Fused(small.grid, STEPS, small.problem.initial_state.x)
    assert accurate(swept(small, control.bfloat16(), steps), expected, PRECISIONS["medium"])


def test_long_sums_of_small_steps_are_not_taken_in_bfloat16(fused, rand):
    """A 640th of the state is lost on bfloat16: steps in it end where they began."""
    x, steps = torch.ones(1, 2, dtype=torch.bfloat16), 64
    problem = ControlProblem(Dense(2), x, LeastSquares(x))
    control = torch.tensor([0.0, 0, 0, 0, 0.1, 0.1], dtype=torch.bfloat16).repeat(steps)
    discretization = Discretization(problem, TimeGrid(1.0, steps), INTEGRATORS["euler"])
    taken = fused.Fused(discretization.grid, steps, x)
    forward(discretization, control, taken)
    torch.testing.assert_close(taken.end.double(), torch.full((1, 2), 1.0997, dtype=torch.float64), rtol=0, atol=2**-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("activation", [TANH, RELU, SMOOTH_RELU], ids=["tanh", "relu", "smooth relu"])
@pytest.mark.parametrize("bias", [0.0, 1e-6, -1e-3, 0.05, -0.05, 0.7, -9.0, 60.0, float("nan"), float("inf")])
def test_activations_are_those_of_torch(activation, bias, fused):
    x = torch.zeros(1, 1)
    problem = ControlProblem(Dense(1, activation), x, LeastSquares(x))
    discretization = Discretization(problem, TimeGrid(1.0, 1), INTEGRATORS["euler"])
    steps, control = fused.Fused(discretization.grid, 1, x), torch.tensor([0.0, bias])
    forward(discretization, control, steps)
    torch.testing.assert_close(steps.end, activation.function(control[1:])[None], rtol=3e-7, atol=0, equal_nan=True)


def test_a_plan_takes_few_steps_at_a_time(exact, fused):
    discretization, control = exact
    single, expected = converted(discretization, torch.float32), reference(discretization, control)
    few, x = fused.Fused(single.grid, 2, single.problem.initial_state.x), single.problem.initial_state.x
    plain = Stepwise(single.integrator, single.grid, x.new_empty(3, *x.shape))
    steps = Recomputed(Binomial(2), STEPS, x, few, plain, few, 2)
    assert accurate(swept(single, control.float(), steps), expected, PRECISIONS["highest"])


SINE = Activation(torch.sin, lambda a: (1 - a * a).sqrt(), lambda a: -a, torch.nn.Identity)


class Own(Dense):
    """A layer whose steps nobody but itself knows."""


@pytest.mark.parametrize(
    ("layer", "scheme", "dtype", "running", "capability", "answer"),
    [
        (Dense(3), EULER, torch.float32, None, (8, 0), True),
        (Dense(128, RELU, Antisymmetric()), EULER, torch.float32, None, (9, 0), True),
        (Dense(256), EULER, torch.bfloat16, None, (8, 6), True),
        (Dense(129), EULER, torch.float32, None, (8, 0), False),
        (Dense(257), EULER, torch.bfloat16, None, (8, 0), False),
        (Dense(3), HEUN, torch.float32, None, (8, 0), False),
        (Dense(3), None, torch.float32, None, (8, 0), False),
        (Dense(3), EULER, torch.float64, None, (8, 0), False),
        (Dense(3), EULER, torch.float32, QuadraticRunning(), (8, 0), False),
        (Dense(3), EULER, torch.float32, None, (7, 5), False),
        (Dense(3, SINE), EULER, torch.float32, None, (8, 0), False),
        (Own(3), EULER, torch.float32, None, (8, 0), False),
        (Convolution(2), EULER, torch.float32, None, (8, 0), False),
    ],
)
def test_the_kernels_take_what_they_are_made_for(layer, scheme, dtype, running, capability, answer, on_a_card):
    problem = ControlProblem(layer, torch.ones(1, 3), lambda x: x.sum(), running)
    assert compiled.supports(scheme, problem, on_a_card(dtype, capability)) is answer


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("kernel", [compiled._forward, compiled._backward], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("width", "precision"), [(64, "highest"), (128, "highest"), (256, "high"), (256, "medium")], indirect=["precision"]
)
def test_the_kernels_compile_and_fit_the_smallest_card(kernel, width, precision):
    constants = compiled._constants(Dense(width), torch.float32)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    numbers = {"h": "fp32"} | dict.fromkeys(("steps", "batch", "A_stride", "b_stride"), "i32")
    kinds = numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "*fp32") for name in kernel.arg_names}, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert binary.metadata.shared <= SHARED


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("precision", PRECISIONS, indirect=True)
def test_on_a_gpu_the_kernels_have_values_and_derivatives_of_torch(exact, precision, monkeypatch):
    monkeypatch.setenv("OCP_CUDA_FAST_PATHS", "1")
    discretization, control = exact
    single = converted(discretization, "cuda", torch.float32)
    objective, u = discretize(single.problem, STEPS), control.float().cuda()
    expected = discretize(discretization.problem, STEPS)
    *_, derivative = [objective.derivative(v) for v in (u, 2 * u, 3 * u, 4 * u, u.clone())]  # the last by a graph
    found = objective.final_state(u), derivative
    assert accurate(found, (expected.final_state(control), expected.derivative(control)), PRECISIONS[precision])
    kept = choose(single, StoreAll(), single.problem.initial_state.x, u[: single.problem.control_size])
    assert (type(kept.tape) is compiled.Fused) is (
        single.problem.dynamics.width <= compiled.WIDEST or precision != "highest"
    )


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_are_off_unless_asked_for(exact):
    discretization, control = exact
    single = converted(discretization, "cuda", torch.float32)
    kept = choose(single, StoreAll(), single.problem.initial_state.x, control[: single.problem.control_size].cuda())
    assert type(kept) is Staged
