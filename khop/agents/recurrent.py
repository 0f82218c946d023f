"""Agents with memory: one network for policy and value, whose first layer is a gated recurrent unit."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from khop.agents.distribution import Distribution
from khop.agents.policies import INITIAL_LOG_SCALE, distribution, limits_of, seen
from khop.agents.stacked import leading, mlp
from khop.system import ContinuousActions, DiscreteActions, Spec
from khop.topology import Neighbourhood


class RecurrentNetwork(eqx.Module):
    """One agent's network: GRU, dense layers, and on top of them a policy and a value (Suau et al. 2022, App. F).

    Published: GRU of 256, one dense layer of 128 with ReLU.
    """

    cell: eqx.nn.GRUCell
    body: eqx.nn.Sequential
    policy: eqx.nn.Sequential
    value: eqx.nn.Sequential
    log_scale: Float[Array, " a"]  # as in Actors

    def __init__(
        self, inputs: int, memory: int, hidden: tuple[int, ...], outputs: int, spreads: int, *, key: PRNGKeyArray
    ):
        keys = jax.random.split(key, 4)
        self.cell = eqx.nn.GRUCell(inputs, memory, key=keys[0])
        self.body = mlp(memory, hidden[:-1], hidden[-1], 1.0, jax.nn.relu, key=keys[1])
        self.policy = mlp(hidden[-1], (), outputs, 0.01, key=keys[2])
        self.value = mlp(hidden[-1], (), 1, 1.0, key=keys[3])
        self.log_scale = jnp.full(spreads, INITIAL_LOG_SCALE)

    def __call__(
        self, memory: Float[Array, " h"], inputs: Float[Array, " f"]
    ) -> tuple[Float[Array, " h"], Float[Array, " g"], Float[Array, ""]]:
        """The next memory, what the policy makes its distribution of, and the value."""
        memory = self.cell(inputs, memory)
        features = jax.nn.relu(self.body(memory))
        return memory, self.policy(features), self.value(features)[0]


class RecurrentActors(eqx.Module):
    """Every agent's policy π_i(a_i | h_i, o_j, j within κ hops of i) and its value; h_i is its own memory.

    Parameters lead with n, or with 1 where agents ``share`` them. With ``pass_memory`` there is a single memory, which
    agents read and leave to the next one in turn: what the published baseline does by accident.
    """

    networks: RecurrentNetwork
    neighbourhood: Neighbourhood = eqx.field(static=True)
    action: DiscreteActions | ContinuousActions = eqx.field(static=True)
    share: bool = eqx.field(static=True)
    pass_memory: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        neighbourhood: Neighbourhood,
        memory: int,
        hidden: tuple[int, ...],
        share: bool,
        pass_memory: bool = False,
        *,
        key: PRNGKeyArray,
    ):
        spreads = 0 if isinstance(spec.action, DiscreteActions) else spec.action.width
        inputs, outputs = neighbourhood.width * spec.d, spec.action.width
        self.networks = eqx.filter_vmap(
            lambda key: RecurrentNetwork(inputs, memory, hidden, outputs, spreads, key=key)
        )(jax.random.split(key, 1 if share else spec.n))
        self.neighbourhood, self.action = neighbourhood, spec.action
        self.share, self.pass_memory = share, pass_memory

    def initial(self, batch: int) -> Float[Array, "B n h"]:
        """The empty memory of B fresh environments."""
        return jnp.zeros((batch, self.neighbourhood.n, self.networks.cell.hidden_size))

    def __call__(
        self, carry: Float[Array, "*batch n h"], obs: Float[Array, "*batch n d"]
    ) -> tuple[Float[Array, "*batch n h"], Distribution]:
        """The next memories, and every agent's distribution over its own actions."""
        act = self.in_turn if self.pass_memory else self.apply
        carry, output, _ = act(carry, seen(self.neighbourhood, obs))
        return carry, distribution(limits_of(self.action), output, self.networks.log_scale)

    def apply(
        self, memory: Float[Array, "*batch n h"], inputs: Float[Array, "*batch n f"]
    ) -> tuple[Float[Array, "*batch n h"], Float[Array, "*batch n g"], Float[Array, "*batch n"]]:
        """The next memories, outputs and values of all agents."""
        *batch, n, _ = inputs.shape
        rows = [jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 1, 0) for x in (memory, inputs)]
        if self.share:
            rows = [x.reshape(1, -1, x.shape[-1]) for x in rows]
        found = eqx.filter_vmap(lambda network, memory, inputs: jax.vmap(network)(memory, inputs))(self.networks, *rows)
        found = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(n, -1, *x.shape[2:]), 0, 1), found)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), found)

    def in_turn(
        self, left: Float[Array, "*batch n h"], inputs: Float[Array, "*batch n f"]
    ) -> tuple[Float[Array, "*batch n h"], Float[Array, "*batch n g"], Float[Array, "*batch n"]]:
        """As ``apply``, every agent on the memory that the one before it leaves, the first on what the last left."""

        def one_agent(memory: Float[Array, "N h"], inputs: Float[Array, "N f"]) -> tuple[Array, tuple]:
            found = jax.vmap(network)(memory, inputs)
            return found[0], found

        network = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, self.networks)
        *batch, n, _ = inputs.shape
        agents_first = jnp.moveaxis(inputs.reshape(-1, *inputs.shape[-2:]), 1, 0)
        start = left[..., -1, :].reshape(-1, left.shape[-1])
        found = jax.lax.scan(one_agent, start, agents_first)[1]
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*batch, n, *x.shape[2:]), found)

    def read(self, before: Float[Array, "*batch n h"], after: Float[Array, "*batch n h"]) -> Float[Array, "*batch n h"]:
        """The memories that agents acted on, given what all had left before and after they acted."""
        return jnp.concatenate([before[..., -1:, :], after[..., :-1, :]], -2) if self.pass_memory else before

    def rescaled(self, factor: Float[Array, " n"]) -> RecurrentActors:
        """The same agents with every value ``factor`` times what it was, by way of the last layer alone."""
        factor = factor.mean()[None] if self.share else factor

        def last(actors: RecurrentActors) -> tuple:
            layer = actors.networks.value.layers[-1]
            return layer.weight, layer.bias

        return eqx.tree_at(last, self, tuple(x * leading(factor, x) for x in last(self)))


def forgotten(carry: PyTree, ended: Bool[Array, "*batch n"]) -> PyTree:
    """Memories (*batch, n, …) that are empty where an agent's episode has ended."""
    return jax.tree.map(lambda leaf: jnp.where(ended[..., None], 0.0, leaf), carry)
