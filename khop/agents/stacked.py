"""One network per agent, stacked into one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped


class Stacked(eqx.Module):
    """n networks of one shape, written for a single agent and applied to all.

    Every parameter leaf leads with n. With ``share`` there is one set of parameters, without that axis, for all.
    """

    network: Any
    share: bool = eqx.field(static=True)

    def __init__(self, build: Callable[[PRNGKeyArray], eqx.Module], n: int, share: bool, *, key: PRNGKeyArray):
        self.share = share
        self.network = build(key) if share else eqx.filter_vmap(build)(jax.random.split(key, n))

    def __call__(self, x: Float[Array, "*batch n f"]) -> Float[Array, "*batch n g"]:
        """Every agent's network on its own row."""
        *batch, n, features = x.shape
        y = self.agents_first(jnp.moveaxis(x.reshape(-1, n, features), 1, 0))
        return jnp.moveaxis(y, 0, 1).reshape(*batch, n, -1)

    def agents_first(self, x: Float[Array, "n S f"]) -> Float[Array, "n S g"]:
        """The same for S moments in the order that computes fastest: one batched matrix product a layer."""
        if self.share:  # one matrix product for all agents
            return jax.vmap(self.network)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return eqx.filter_vmap(lambda network, rows: jax.vmap(network)(rows))(self.network, x)


def mlp(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    gain: float,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    key: PRNGKeyArray,
) -> eqx.nn.Sequential:
    """A network with zero biases and variance-preserving weights, its last layer scaled by ``gain``.

    The weights are drawn, not orthogonalised: a batched QR factorisation inside jit can deadlock XLA's thread pool on
    machines of few cores.
    """
    sizes = (inputs, *hidden, outputs)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    gains = [*[1.0] * len(hidden), gain]
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    drawn = jax.random.truncated_normal(key, -2, 2, (int(ends[-1]),))  # all at once: every draw costs compile time
    layers: list[Callable] = []
    for flat, (rows, columns), scale in zip(jnp.split(drawn, ends[:-1]), shapes, gains, strict=True):
        weight = flat.reshape(rows, columns) * (scale / columns**0.5)
        linear = eqx.nn.Linear(columns, rows, key=key)
        layers.append(eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, jnp.zeros(rows))))
        layers.append(eqx.nn.Lambda(activation))
    return eqx.nn.Sequential(layers[:-1])


def leading(per_agent: Shaped[Array, "*n"], leaf: Array) -> Array:
    """A per-agent array (or one number for all) shaped to multiply a parameter leaf that leads with n."""
    return per_agent.reshape(per_agent.shape + (1,) * (leaf.ndim - per_agent.ndim))
