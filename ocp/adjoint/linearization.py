"""All steps of a small problem at once: their linearization around a trajectory, and their second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.adjoint.at_once import Bidiagonal
from ocp.adjoint.discretization import Discretization
from ocp.problem.functions import gradients, jacobians

__all__ = ["Linearization"]


class Linearization:
    """Steps z_k = Psi_h(t_k, x_k, u_k), the next state with the running cost of the step as its last entry.

    With known states, no step waits for another: values, Jacobians J_k = dz_k/d(x_k, u_k) and second derivatives of
    all are taken at once; only linear recursions are left, which LAPACK solves. It serves all directions, so that a
    product with a Hessian costs less than a gradient.

    It needs the trajectory, shape (N + 1, batch, *state), its control, shape (N, m), and the costate p at the end.
    """

    def __init__(self, discretization: Discretization, states: Tensor, path: Tensor, p: Tensor):
        with torch.enable_grad():
            self._leaves = states[:-1].clone().requires_grad_(), path.detach().clone().requires_grad_()
            z = discretization.steps(states.new_tensor(discretization.grid.nodes[:-1]), *self._leaves)
            by_state, by_control = jacobians(z, self._leaves)
            n = by_state.shape[2]
            self._recursion = Bidiagonal(by_state[:, :n].permute(1, 2, 0).double().cpu().numpy())
            costates = self._solve(torch.cat((by_state[:, n], p.reshape(1, -1))), transposed=True)
            later = torch.nn.functional.pad(costates[1:], (0, 1), value=1.0)  # (p_{k+1}, 1)
            self._slopes = torch.autograd.grad(z, self._leaves, later, create_graph=True, allow_unused=True)
        self.costate, self._by_control = costates[0].view(states.shape[1:]), by_control[:, :n]

    def tangents(self, dx: Tensor, dpath: Tensor) -> Tensor:
        """Tangents of the states, shape (N + 1, batch, *state), for those of the first one and of the path."""
        given = (self._by_control @ dpath.unsqueeze(2)).squeeze(2)
        return self._solve(torch.cat((dx.reshape(1, -1), given))).view(-1, *dx.shape)

    def second(self, tangents: Tensor, dpath: Tensor, dp: Tensor) -> tuple[Tensor, Tensor]:
        """The tangents of the first costate and of the derivatives by the path, given that of the last costate."""
        with torch.enable_grad():
            directions = (tangents[:-1], dpath)
            bends = [
                (slope * direction).sum()
                for slope, direction in zip(self._slopes, directions, strict=True)
                if slope is not None and slope.requires_grad
            ]
            hx, hu = (torch.zeros_like(leaf) for leaf in self._leaves)
            if bends:
                hx, hu = gradients(torch.stack(bends).sum(), self._leaves, retain_graph=True)
        costates = self._solve(torch.cat((hx.flatten(1), dp.reshape(1, -1))), transposed=True)
        return costates[0].view(dp.shape), hu + (self._by_control.mT @ costates[1:].unsqueeze(2)).squeeze(2)

    def _solve(self, right: Tensor, transposed: bool = False) -> Tensor:
        """The linear recursion with the Jacobians by the state, or its transpose, for (N + 1, n) numbers."""
        return torch.from_numpy(self._recursion.solve(right.double().cpu().numpy(), transposed)).to(right)
