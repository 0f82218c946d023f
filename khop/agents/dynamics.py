"""Local models: every agent predicts its own next observation, reward and ending from what its neighbourhood does.

What crosses an edge is a state and an action. The first layer of an agent's network is a sum of messages, one from
every slot of its neighbourhood, each with weights of its own, so that a leader and a follower are told apart and an
agent without neighbours still sees itself.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from khop.agents.policies import seen
from khop.agents.stacked import Stacked, mlp
from khop.system import ContinuousActions, DiscreteActions, Spec
from khop.topology import Neighbourhood

RAREST = 1e-6  # no ending is taken to be rarer


def symlog(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sign(x) log(1 + |x|): keeps small differences visible beside large values (Hafner et al. 2023)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of ``symlog``."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class Scales(eqx.Module):
    """Mean and spread of what each agent's models read and predict, in the system's own units."""

    obs_mean: Float[Array, "n d"]
    obs_spread: Float[Array, "n d"]
    change_mean: Float[Array, "n d"]
    change_spread: Float[Array, "n d"]  # 0 where the change is always the same, which is then predicted exactly
    reward_mean: Float[Array, " n"]  # of symlog rewards
    reward_spread: Float[Array, " n"]
    low: Float[Array, "n d"]  # the range seen
    high: Float[Array, "n d"]
    least_reward: Float[Array, " n"]
    most_reward: Float[Array, " n"]
    terminated_rate: Float[Array, " n"]  # share of steps that end an agent's episode
    lost_rate: Float[Array, " n"]

    @property
    def unit_of_change(self) -> Float[Array, "n d"]:
        """What errors are measured in: the spread of the change, 1 where it has none."""
        return jnp.where(self.change_spread > 0, self.change_spread, 1.0)

    @classmethod
    def unknown(cls, n: int, d: int) -> Scales:
        """Before any experience."""
        zero, one = jnp.zeros((n, d)), jnp.ones((n, d))
        return cls(zero, one, zero, one, zero[:, 0], one[:, 0], zero, zero, *4 * (zero[:, 0],))


class Outcome(NamedTuple):
    """What an agent's models say of a step: symlog rewards, in units of their spread, should the agent's episode go on
    and should it end; and the logits of the two endings among steps half of which are drawn as they come and half of
    which end an episode.
    """

    reward: Float[Array, "*batch n"]
    final_reward: Float[Array, "*batch n"]
    terminated: Float[Array, "*batch n"]
    lost: Float[Array, "*batch n"]

    def endings(self, scales: Scales) -> tuple[Bool[Array, "*batch n"], Bool[Array, "*batch n"]]:
        """Whether each ending is more likely than not, given how rare it is (King & Zeng 2001, eq. 7)."""
        rates = scales.terminated_rate, scales.lost_rate
        terminated, lost = (jnp.log1p(1 / jnp.maximum(rate, RAREST)) for rate in rates)
        return self.terminated > terminated, self.lost > lost


class LinearPlus(eqx.Module):
    """A linear map, zero at first, plus a network: dynamics are often nearly linear, but not quite."""

    linear: Float[Array, "g f"]
    network: eqx.nn.Sequential

    def __init__(self, inputs: int, outputs: int, network: eqx.nn.Sequential):
        self.linear = jnp.zeros((outputs, inputs))
        self.network = network

    def __call__(self, x: Float[Array, " f"]) -> Float[Array, " g"]:
        return self.linear @ x + self.network(x)


class LocalModels(eqx.Module):
    """p̂_i(s'_i, r_i, end_i | s_j, a_j; j within κ hops of i), for all agents at once (Ma et al. 2024, Methods).

    Two networks an agent: the *transition* predicts the change of its own observation, the *outcome* reads the same and
    the next observation, on which rewards and endings usually depend. Both also read the products of the agent's own
    observation with its own discrete action, so that every action has a linear map of its own.
    """

    transition: Stacked
    outcome: Stacked
    neighbourhood: Neighbourhood = eqx.field(static=True)
    action: DiscreteActions | ContinuousActions = eqx.field(static=True)
    products: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        neighbourhood: Neighbourhood,
        hidden: tuple[int, ...],
        linear: bool,
        share: bool,
        *,
        key: PRNGKeyArray,
    ):
        products = 0 if linear or isinstance(spec.action, ContinuousActions) else spec.d * spec.action.width
        inputs = neighbourhood.width * (spec.d + spec.action.width) + products
        keys = jax.random.split(key)

        def transition(key: PRNGKeyArray) -> eqx.Module:
            network = mlp(inputs, () if linear else hidden, spec.d, 0.1, jax.nn.silu, key=key)
            return network if linear else LinearPlus(inputs, spec.d, network)

        self.transition = Stacked(transition, spec.n, share, key=keys[0])
        self.outcome = Stacked(
            lambda key: mlp(inputs + spec.d, hidden, 4, 0.1, jax.nn.silu, key=key), spec.n, share, key=keys[1]
        )
        self.neighbourhood = neighbourhood
        self.action = spec.action
        self.products = products > 0

    def inputs(
        self, scales: Scales, obs: Float[Array, "*batch n d"], action: Array, local: bool = False
    ) -> Float[Array, "*batch n f"]:
        """What every agent's networks read.

        With ``local``, no gradient flows back to a neighbour: what arrives over an edge is a number, not a derivative.
        """
        own, act = (obs - scales.obs_mean) / scales.obs_spread, _encoded(action, self.action)
        sent = jnp.concatenate([own, act], -1)
        read = seen(self.neighbourhood, sent)
        if local:  # slot 0 is the agent itself
            read = jnp.concatenate([sent, jax.lax.stop_gradient(read)[..., sent.shape[-1] :]], -1)
        if not self.products:
            return read
        products = own[..., :, None] * act[..., None, :]
        return jnp.concatenate([read, products.reshape(*own.shape[:-1], -1)], -1)

    def next_obs(
        self, scales: Scales, obs: Float[Array, "*batch n d"], inputs: Float[Array, "*batch n f"]
    ) -> Float[Array, "*batch n d"]:
        """The predicted next observation."""
        return obs + scales.change_mean + scales.change_spread * self.transition(inputs)

    def judge(
        self, scales: Scales, inputs: Float[Array, "*batch n f"], next_obs: Float[Array, "*batch n d"]
    ) -> Outcome:
        """Reward and endings of a step whose next observation is known or predicted."""
        arrived = (next_obs - scales.obs_mean) / scales.obs_spread
        output = self.outcome(jnp.concatenate([inputs, arrived], -1))
        return Outcome(*jnp.moveaxis(output, -1, 0))


def _encoded(action: Array, actions: DiscreteActions | ContinuousActions) -> Float[Array, "*batch n a"]:
    """Actions as features: one-hot, or the place in the box from −1 to 1."""
    if isinstance(actions, DiscreteActions):
        return jax.nn.one_hot(action, actions.width)
    low, high = jnp.asarray(actions.low), jnp.asarray(actions.high)
    return 2 * (action - low) / (high - low) - 1
