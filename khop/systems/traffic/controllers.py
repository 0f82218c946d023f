"""Classical control of traffic lights."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from khop.system import ConstantController
from khop.systems.traffic.network import Network
from khop.systems.traffic.simulator import ACTUATED, OWN_PROGRAMME

FIXED_GREEN = 30.0  # s
BASELINES = ("own-programme", "fixed-cycle", "actuated", "max-pressure", "longest-queue")


class FixedCycle(eqx.Module):
    """Every light goes through its phases in order, each for the same number of steps."""

    sizes: Int[Array, " n"]
    steps: int = eqx.field(static=True)

    def initial(self) -> PyTree:
        return jnp.zeros((), jnp.int32)

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Array) -> tuple[PyTree, Array]:
        return carry + 1, (carry // self.steps) % self.sizes


class Greedy(eqx.Module):
    """Every light chooses the phase whose links have most vehicles before them, less those behind them."""

    before: Int[Array, "n K"]  # lane of each link; −1: none
    behind: Int[Array, "n K"]
    capacity: Float[Array, "n A K"]  # of each link in each phase
    missing: Bool[Array, "n A"]  # phases that a light does not have
    quantity: str = eqx.field(static=True)

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Array) -> tuple[PyTree, Array]:
        count = jnp.append(state[self.quantity], 0.0)  # which −1 reads
        weight = (self.capacity * (count[self.before] - count[self.behind])[:, None]).sum(-1)
        return carry, jnp.argmax(jnp.where(self.missing, -jnp.inf, weight), -1).astype(jnp.int32)


def classical(name: str, network: Network, interval: int) -> ConstantController | FixedCycle | Greedy:
    """One of ``BASELINES``.

    ``max-pressure`` weighs a link by the vehicles on its incoming lane less those on its outgoing one, times its share
    of the incoming lane's capacity (Varaiya 2013, with saturation flows split evenly over a lane's links);
    ``longest-queue`` by the vehicles that stand on its incoming lane.
    """
    n, sizes = len(network.lights), np.array([len(states) for states in network.states])
    if name in ("own-programme", "actuated"):  # actions below 0 leave the lights to SUMO
        return ConstantController(jnp.full(n, OWN_PROGRAMME if name == "own-programme" else ACTUATED, jnp.int32))
    if name == "fixed-cycle":
        return FixedCycle(jnp.asarray(sizes, jnp.int32), max(round(FIXED_GREEN / interval), 1))
    before, behind = jnp.asarray(network.link_lanes(0)), jnp.asarray(network.link_lanes(1))
    capacity = jnp.asarray(network.capacity(), jnp.float32)
    missing = jnp.arange(network.phases) >= sizes[:, None]
    if name == "max-pressure":
        return Greedy(before, behind, capacity, missing, "vehicles")
    return Greedy(before, jnp.full_like(behind, -1), capacity, missing, "halting")
