"""Classical controllers of inverters: nothing, droop, and optimal power flow by projected gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from khop.systems.distribution_grid.power_flow import Solution

if TYPE_CHECKING:
    from khop.systems.distribution_grid.voltage_control import GridState, VoltageControl

DROOP_ITERATIONS, DROOP_GAIN = 120, 0.1
BAND = 0.05  # pu off 1
OPF_CORRECTIONS, OPF_STEPS = 4, 200
MARGIN = 0.002  # pu inside the band that the optimum is asked to keep
VIOLATION = 1e3  # cost of a squared pu beyond the margin, at each bus, against losses as a share of installed power


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
            target = -limit * jnp.clip((voltage - 1) / BAND, -1, 1)
            return fraction + DROOP_GAIN * (target - fraction), None

        start = state.reactive / jnp.maximum(cap, 1e-6)
        fraction, _ = jax.lax.scan(follow, jnp.clip(start, -limit, limit), length=DROOP_ITERATIONS)
        return carry, self.system.action(fraction)


class OptimalPowerFlow(eqx.Module):
    """All inverters jointly, knowing everything: voltages in the band first, then the least losses.

    Projected gradients on a model that is corrected by the true power flow a few times: voltages change linearly with
    reactive power, as they do near a grid without load, losses by their true gradient plus a quadratic form. No
    guarantee of the global optimum comes with it; a test holds it against a search over all actions of a small grid.
    """

    system: VoltageControl

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: GridState, obs: Array) -> tuple[PyTree, Array]:
        plant, limit = self.system.plant, self.system.limit
        cap = plant.capability(state.sun)
        per_mvar, curvature, steepest = (jnp.asarray(x, jnp.float32) for x in plant.sensitivity)
        installed = plant.data[0].inverter_peak.sum()
        rate = 1 / (jnp.max(cap) ** 2 * (2 * VIOLATION * steepest[0] + 2 * steepest[1] / installed))

        def losses(fraction: Float[Array, " I"]) -> tuple[Float[Array, ""], Solution]:
            solution = plant.solve(state.load, state.sun, fraction * cap)
            return plant.flow.losses(solution).sum() / installed, solution

        def correct(fraction: Float[Array, " I"], _: None) -> tuple[Float[Array, " I"], None]:
            slope, solution = jax.grad(losses, has_aux=True)(fraction)

            def descend(moving: tuple[Array, Array], step: Array) -> tuple[tuple[Array, Array], None]:
                here, ahead = moving  # Nesterov's acceleration: the gradient is taken where momentum leads
                change = cap * (ahead - fraction)
                off = solution.magnitude + per_mvar @ change - 1
                beyond = jnp.sign(off) * jnp.maximum(abs(off) - (BAND - MARGIN), 0.0)
                gradient = slope + cap * (2 * VIOLATION * (beyond @ per_mvar) + 2 / installed * (curvature @ change))
                after = jnp.clip(ahead - rate * gradient, -limit, limit)
                return (after, after + step / (step + 3) * (after - here)), None

            steps = jnp.arange(OPF_STEPS, dtype=fraction.dtype)
            return jax.lax.scan(descend, (fraction, fraction), steps)[0][0], None

        start = jnp.clip(state.reactive / jnp.maximum(cap, 1e-6), -limit, limit)
        fraction, _ = jax.lax.scan(correct, start, length=OPF_CORRECTIONS)
        return carry, self.system.action(fraction)
