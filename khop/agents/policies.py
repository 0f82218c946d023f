"""Feed-forward agents: actors and critics that see their κ-hop neighbourhood."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from khop.agents.distribution import BoundedNormal, Categorical, Distribution
from khop.agents.stacked import Stacked, leading, mlp
from khop.system import ContinuousActions, DiscreteActions, Spec
from khop.topology import Neighbourhood

INITIAL_LOG_SCALE = -0.7  # half of the box's half width: explores all of it, yet knows its middle


class Actors(eqx.Module):
    """Every agent's policy π_i(a_i | o_j, j within κ hops of i).

    Discrete actions: a masked categorical. Continuous ones: a normal truncated to the agent's box, whose spread does
    not depend on the observation.
    """

    networks: Stacked
    log_scale: Float[Array, "n a"]  # of the box's half width; empty for discrete actions
    neighbourhood: Neighbourhood = eqx.field(static=True)
    action: DiscreteActions | ContinuousActions = eqx.field(static=True)

    def __init__(
        self, spec: Spec, neighbourhood: Neighbourhood, hidden: tuple[int, ...], share: bool, *, key: PRNGKeyArray
    ):
        inputs, outputs = neighbourhood.width * spec.d, spec.action.width
        self.networks = Stacked(lambda key: mlp(inputs, hidden, outputs, 0.01, key=key), spec.n, share, key=key)
        self.neighbourhood = neighbourhood
        self.action = spec.action
        spreads = 0 if isinstance(spec.action, DiscreteActions) else outputs
        self.log_scale = jnp.full((1 if share else spec.n, spreads), INITIAL_LOG_SCALE)

    def initial(self, batch: int) -> PyTree:
        """The memory of B fresh environments: none."""
        return ()

    def read(self, before: PyTree, after: PyTree) -> PyTree:
        """The memories that agents acted on: none."""
        return before

    def __call__(self, carry: PyTree, obs: Float[Array, "*batch n d"]) -> tuple[PyTree, Distribution]:
        """Every agent's distribution over its own actions."""
        return carry, self._distribution(self.networks(seen(self.neighbourhood, obs)), lambda bound: bound)

    def agents_first(self, inputs: Float[Array, "n S Kd"]) -> Distribution:
        """The distributions (n, S) for what the agents saw in S moments."""
        return self._distribution(self.networks.agents_first(inputs), lambda bound: bound[:, None])

    def _distribution(self, output: Float[Array, "*axes"], spread: Callable[[Array], Array]) -> Distribution:
        """From what networks put out; ``spread`` gives a per-agent array (n, ·) the axes to broadcast against it."""
        limits = tuple(spread(limit) for limit in limits_of(self.action))
        return distribution(limits, output, spread(self.log_scale))


class Critics(eqx.Module):
    """Every agent's extended value V_i(o_j, j within κ hops of i) (Ma et al. 2024, eq. 1)."""

    networks: Stacked
    neighbourhood: Neighbourhood = eqx.field(static=True)

    def __init__(
        self, spec: Spec, neighbourhood: Neighbourhood, hidden: tuple[int, ...], share: bool, *, key: PRNGKeyArray
    ):
        inputs = neighbourhood.width * spec.d
        self.networks = Stacked(lambda key: mlp(inputs, hidden, 1, 1.0, key=key), spec.n, share, key=key)
        self.neighbourhood = neighbourhood

    def __call__(self, obs: Float[Array, "*batch n d"]) -> Float[Array, "*batch n"]:
        """Every agent's value."""
        return self.networks(seen(self.neighbourhood, obs))[..., 0]

    def agents_first(self, inputs: Float[Array, "n S Kd"]) -> Float[Array, "n S"]:
        """The values for what the agents saw in S moments."""
        return self.networks.agents_first(inputs)[..., 0]

    def rescaled(self, factor: Float[Array, " n"]) -> Critics:
        """Critics whose every output is ``factor`` times what it was, by way of the last layer alone."""
        factor = factor.mean() if self.networks.share else factor

        def last(critics: Critics) -> tuple:
            layer = critics.networks.network.layers[-1]
            return layer.weight, layer.bias

        weight, bias = last(self)
        scaled = (weight * leading(factor, weight), bias * leading(factor, bias))
        return eqx.tree_at(last, self, scaled)


def seen(neighbourhood: Neighbourhood, obs: Float[Array, "*batch n d"]) -> Float[Array, "*batch n Kd"]:
    """What each agent sees: the observations of its neighbourhood side by side, its own first."""
    gathered = neighbourhood.gather(obs)
    return gathered.reshape(*obs.shape[:-1], -1)


def limits_of(action: DiscreteActions | ContinuousActions) -> tuple[Array, ...]:
    """What bounds each agent's choice, (n, ·): the mask of its discrete actions, or the low and high of its box."""
    if isinstance(action, DiscreteActions):
        return (jnp.asarray(action.mask),)
    return jnp.asarray(action.low), jnp.asarray(action.high)


def distribution(
    limits: tuple[Array, ...], output: Float[Array, "*axes"], log_scale: Float[Array, "*spreads"]
) -> Distribution:
    """A distribution within such limits from what networks put out; all broadcast against each other."""
    if len(limits) == 1:
        return Categorical(output, limits[0])
    low, high = limits
    half = (high - low) / 2
    mean = low + half * (1 + jnp.tanh(output))
    return BoundedNormal(mean, jnp.broadcast_to(half * jnp.exp(log_scale), mean.shape), low, high)
