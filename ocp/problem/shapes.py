"""Names for tensors by their shape. Annotations say what is expected; `Discretization.check` verifies it once."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["BatchState", "ControlPath", "Cotangent", "FlatControl", "NodeStates", "Parameters", "Scalar", "StepControl"]

#: A state, or something of its shape such as a costate, for each sample.
BatchState = Float[Tensor, "batch *state"]
#: The states at all nodes, or something of their shape.
NodeStates = Float[Tensor, "steps+1 batch *state"]
#: The control u of one step, or something of its shape.
StepControl = Float[Tensor, " m"]
#: Derivatives by a state and the control of a step.
Cotangent = tuple[BatchState, StepControl]
#: The controls of consecutive steps.
ControlPath = Float[Tensor, "steps m"]
#: The parameters q of a problem.
Parameters = Float[Tensor, " s"]
#: Path and parameters in one vector.
FlatControl = Float[Tensor, " steps*m+s"]
#: One number.
Scalar = Float[Tensor, ""]
