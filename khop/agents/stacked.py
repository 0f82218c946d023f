"""One network per agent, stacked into one module."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Stacked(eqx.Module):
    """n networks of one shape, written for a single agent and applied to all.

    Every parameter leaf leads with n. With ``share`` there is one set of parameters, without that axis, for all.
    """

    network: Callable[[Array], Array]  # a module
    share: bool = eqx.field(static=True)

    def __init__(
        self, build: Callable[[PRNGKeyArray], Callable[[Array], Array]], n: int, share: bool, *, key: PRNGKeyArray
    ):
        self.share = share
        self.network = build(key) if share else eqx.filter_vmap(build)(jax.random.split(key, n))

    def __call__(self, x: Float[Array, "*batch n f"]) -> Float[Array, "*batch n g"]:
        """Every agent's network on its own row."""
        *batch, n, features = x.shape
        if self.share:
            y = jax.vmap(self.network)(x.reshape(-1, features))
            return y.reshape(*batch, n, -1)
        rows = jnp.moveaxis(x.reshape(-1, n, features), 1, 0)  # agents lead: one batched matrix product a layer
        y = eqx.filter_vmap(lambda network, rows: jax.vmap(network)(rows))(self.network, rows)
        return jnp.moveaxis(y, 0, 1).reshape(*batch, n, -1)


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, gain: float, *, key: PRNGKeyArray) -> eqx.nn.Sequential:
    """A tanh network with zero biases and variance-preserving weights, its last layer scaled by ``gain``.

    The weights are drawn, not orthogonalised: a batched QR factorisation inside jit can deadlock XLA's thread pool on
    machines of few cores.
    """
    sizes = (inputs, *hidden, outputs)
    layers: list[Callable] = []
    for depth, layer_key in enumerate(jax.random.split(key, len(sizes) - 1)):
        rows, columns = sizes[depth + 1], sizes[depth]
        scale = (gain if depth == len(hidden) else 1.0) / columns**0.5
        weight = scale * jax.random.truncated_normal(layer_key, -2, 2, (rows, columns))
        linear = eqx.nn.Linear(columns, rows, key=layer_key)
        layers.append(eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, jnp.zeros(rows))))
        layers.append(eqx.nn.Lambda(jnp.tanh))
    return eqx.nn.Sequential(layers[:-1])
