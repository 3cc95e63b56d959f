"""All steps of a small problem at once: their linearization around a trajectory, and their second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.problem.functions import gradients, jacobians

__all__ = ["Linearization"]


class Linearization:
    """Steps z_k = Psi_h(t_k, x_k, u_k), the next state with the running cost of the step as its last entry.

    With known states, no step waits for another: values, Jacobians J_k = dz_k/d(x_k, u_k) and second derivatives of
    all are taken at once; only products with small matrices are left to do in turn. It serves all directions, so that a
    product with a Hessian costs less than a gradient.

    It needs the trajectory, shape (N + 1, batch, *state), its control, shape (N, m), and the costate p at the end.
    """

    def __init__(self, discretization: Discretization, states: Tensor, path: Tensor, p: Tensor):
        with torch.enable_grad():
            self._leaves = states[:-1].clone().requires_grad_(), path.detach().clone().requires_grad_()
            z = discretization.steps(states.new_tensor(discretization.grid.nodes[:-1]), *self._leaves)
            by_state, by_control = jacobians(z, self._leaves)
            n = by_state.shape[2]
            costates = z.detach().new_ones(z.shape)  # (p_{k+1}, 1)
            for J, costate in zip(reversed(by_state.unbind(0)), reversed(costates.unbind(0)), strict=True):
                costate[:n].copy_(p.flatten())
                p = J.mT @ costate
            self._slopes = torch.autograd.grad(z, self._leaves, costates, create_graph=True, allow_unused=True)
        self.costate = p.view(states.shape[1:])
        self._by_state, self._by_control = by_state[:, :n], by_control[:, :n]

    def tangents(self, dx: Tensor, dpath: Tensor) -> Tensor:
        """Tangents of the states, shape (N + 1, batch, *state), for those of the first one and of the path."""
        given = (self._by_control @ dpath.unsqueeze(2)).squeeze(2)
        tangents = [dx.flatten()]
        for J, forced in zip(self._by_state.unbind(0), given.unbind(0), strict=True):
            tangents.append(torch.addmv(forced, J, tangents[-1]))
        return torch.stack(tangents).view(-1, *dx.shape)

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
        costates, shape, dp = [], dp.shape, dp.flatten()
        for J, forced in zip(reversed(self._by_state.unbind(0)), reversed(hx.flatten(1).unbind(0)), strict=True):
            costates.append(dp)
            dp = torch.addmv(forced, J.mT, dp)
        later = torch.stack(costates[::-1]).unsqueeze(2)
        return dp.view(shape), hu + (self._by_control.mT @ later).squeeze(2)
