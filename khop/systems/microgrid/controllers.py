"""Classical secondary voltage control."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from khop.system import ConstantController, System
from khop.systems.microgrid.network import NOMINAL_VOLTAGE
from khop.systems.microgrid.observation import reactive_power, voltage_error
from khop.topology import Neighbourhood

REGULATION = 10.0  # 1/s, β: how fast its own voltage error moves an inverter's set-point
SHARING = 1.0  # 1/s, b: how fast each difference from a neighbour does
EPISODES = 32  # that constants are compared on


class Averaging(eqx.Module):
    """Distributed-averaging proportional-integral control, Simpson-Porco et al. (2015), for voltages.

    Each inverter integrates its own voltage error and how much more of its share of reactive power it delivers than its
    neighbours do: dV*_i/dt = −β (v_i − 480 V) − b Σ_j (n_i Q_i − n_j Q_j), where n is the droop, to which shares are
    inverse. It hears its neighbours' n_j Q_j alone. Where there are levels, the nearest one is applied.
    """

    droop: Float[Array, " n"]  # V per var
    levels: Float[Array, " levels"] | None  # V, to choose from; None: any between the limits
    limits: tuple[float, float] = eqx.field(static=True)
    interval: float = eqx.field(static=True)  # s
    neighbourhood: Neighbourhood = eqx.field(static=True)

    def initial(self) -> Float[Array, " n"]:
        """The set-points of droop control alone."""
        return jnp.full(self.droop.shape, NOMINAL_VOLTAGE, float)

    def __call__(
        self, key: PRNGKeyArray, carry: Float[Array, " n"], state: PyTree, obs: Float[Array, "n 10"]
    ) -> tuple[Float[Array, " n"], Array]:
        burden = self.droop * reactive_power(obs)
        excess = self.neighbourhood.size * burden - self.neighbourhood.sum(burden)
        change = REGULATION * voltage_error(obs) + SHARING * excess
        set_point = jnp.clip(carry - self.interval * change, *self.limits)  # clipped, so that it cannot wind up
        if self.levels is None:
            return set_point, set_point[:, None]
        return set_point, jnp.argmin(abs(self.levels - set_point[:, None]), axis=-1)


@eqx.filter_jit
def best_constant(system: System, actions: Array) -> ConstantController:
    """Of C joint actions (C, n, …) the one that returns most when kept for ever, all on the same episodes."""

    def total(action: Array, key: PRNGKeyArray) -> Array:
        def step(state: PyTree, key: PRNGKeyArray) -> tuple[PyTree, Array]:
            step = system.step(key, state, action)
            return step.state, step.reward.sum()

        reset_key, run_key = jax.random.split(key)
        return jax.lax.scan(step, system.reset(reset_key)[0], jax.random.split(run_key, system.spec.horizon))[1].mean()

    keys = jax.random.split(jax.random.key(0), EPISODES)
    returns = jax.lax.map(lambda action: jax.vmap(lambda key: total(action, key))(keys).mean(), actions)
    return ConstantController(actions[jnp.argmax(returns)])
