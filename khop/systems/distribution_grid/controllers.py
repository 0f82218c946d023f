"""Classical controllers of inverters: nothing, droop, and optimal power flow by projected gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from khop.systems.distribution_grid.power_flow import Solution

if TYPE_CHECKING:
    from khop.systems.distribution_grid.voltage_control import GridState, VoltageControl

DROOP_ITERATIONS, DROOP_GAIN = 120, 0.1
SATURATION = 0.05  # pu off 1, at which droop gives all it can
OPF_STEPS, OPF_RATE, OPF_MEMORY = 60, 0.05, 0.9
MARGIN = 0.002  # pu inside the band that the optimum is asked to keep
VIOLATION = 1e4  # cost of a squared pu beyond the margin, at each bus, against losses as a share of installed power


class NoControl(eqx.Module):
    """No reactive power at all."""

    system: VoltageControl

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: GridState, obs: Array) -> tuple[PyTree, Array]:
        return carry, self.system.action(jnp.zeros_like(state.sun))


class Droop(eqx.Module):
    """Every inverter absorbs or feeds in reactive power in proportion to its own voltage's distance from 1 pu.

    Droop works within seconds, so what acts on the grid for the next three minutes is its equilibrium. It is found by
    letting all inverters follow slowly, a tenth of the way at each iteration of the power flow (Wang et al. 2021). They
    saturate at the limit that the agents have, 0.05 pu off.
    """

    system: VoltageControl

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: GridState, obs: Array) -> tuple[PyTree, Array]:
        plant, limit = self.system.plant, self.system.limit
        at = plant.data[0].inverter_bus
        cap = plant.capability(state.sun)

        def follow(fraction: Float[Array, " I"], _: None) -> tuple[Float[Array, " I"], None]:
            active, reactive = plant.injections(state.load, state.sun, fraction * cap)
            voltage = plant.flow.solve(active, reactive, iterations=4).magnitude[at]
            target = -limit * jnp.clip((voltage - 1) / SATURATION, -1, 1)
            return fraction + DROOP_GAIN * (target - fraction), None

        start = state.reactive / jnp.maximum(cap, 1e-6)
        fraction, _ = jax.lax.scan(follow, jnp.clip(start, -limit, limit), length=DROOP_ITERATIONS)
        return carry, self.system.action(fraction)


class OptimalPowerFlow(eqx.Module):
    """All inverters jointly, knowing everything: voltages in the band first, then the least losses.

    Projected gradient descent with Adam's step sizes through the differentiable power flow, from the last reactive
    power. No guarantee of the global optimum comes with it; ``tests`` hold it against a grid search.
    """

    system: VoltageControl

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: GridState, obs: Array) -> tuple[PyTree, Array]:
        plant, limit = self.system.plant, self.system.limit
        cap = plant.capability(state.sun)
        installed = plant.data[0].inverter_peak.sum()

        def cost(fraction: Float[Array, " I"]) -> Float[Array, ""]:
            solution = plant.solve(state.load, state.sun, fraction * cap)
            return violation(solution) * VIOLATION + plant.flow.losses(solution).sum() / installed

        optimiser = optax.adam(optax.cosine_decay_schedule(OPF_RATE, OPF_STEPS), b2=OPF_MEMORY)

        def descend(carry: tuple, _: None) -> tuple[tuple, None]:
            fraction, moments = carry
            updates, moments = optimiser.update(jax.grad(cost)(fraction), moments)
            return (jnp.clip(fraction + updates, -limit, limit), moments), None

        start = jnp.clip(state.reactive / jnp.maximum(cap, 1e-6), -limit, limit)
        (fraction, _), _ = jax.lax.scan(descend, (start, optimiser.init(start)), length=OPF_STEPS)
        return carry, self.system.action(fraction)


def violation(solution: Solution) -> Float[Array, ""]:
    """Sum over buses of the squared distance from the band less the margin, pu²."""
    beyond = jnp.maximum(abs(solution.magnitude - 1) - (0.05 - MARGIN), 0.0)
    return jnp.sum(beyond**2)
