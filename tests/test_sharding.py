"""Agents on one device and on four: the same training."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from khop import sharding

PROGRAM = """
import dataclasses, json, sys, jax, khop
from khop.methods import METHODS
from khop.training import Training
from khop.worlds.influence import Influence
from khop.worlds.imagination import Imagination

name = sys.argv[1]
parts = {
    "dppo": {},
    "mdpo": {"imagination": Imagination(
        ensemble=2, model_hidden=(8,), branches=8, branch_length=5, rounds=2, fit_rounds=2, gate=10.0, memory=400
    )},
    "dials": {"recurrent": 8, "influence": Influence(
        collected=4, predictor_epochs=2, predictor_hidden=4, refresh=64
    )},
}
learner = dataclasses.replace(METHODS[name].learner, epochs=1, minibatches=2)
small = dataclasses.replace(METHODS[name], hidden=(8,), environments=4, rollout=16, learner=learner, **parts[name])
system = khop.make("warehouse", side=2, horizon=10) if name == "dials" else khop.make("platoon-catchup", vehicles=4)
training = Training(system, small, 1000)
iterate, state = training.compiled(), training.init_seeds([0])
state, _ = iterate(state)
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append("backend" in event))
for _ in range(2):
    state, metrics = iterate(state)
assert not any(compiled), "the second iteration was compiled again"
weights = jax.tree.leaves(state.learner.actors.networks)[0]
print(json.dumps([len(weights.sharding.device_set), {name: float(value[0]) for name, value in metrics.items()}]))
"""


def trained(method: str, devices: int) -> tuple[int, dict[str, float]]:
    """How many devices take part, and the metrics of the third iteration."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    held, metrics = json.loads(done.stdout.splitlines()[-1])
    return held, metrics


@pytest.mark.parametrize("method", ["dppo", "mdpo", "dials"])
def test_four_devices_train_as_one_does(method: str) -> None:
    """To floating-point noise; and all four take part."""
    (one, alone), (four, together) = trained(method, 1), trained(method, 4)
    assert (one, four) == (1, 4)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert abs(value - together[name]) < 1e-4 + 1e-3 * abs(value), name
    if method == "mdpo":
        assert alone["imagined_share"] > 0


DEVICES = """
import jax, jax.numpy as jnp, khop
from khop.sharding import each_agent, everywhere, mesh, spread

tree = {"agents": jnp.arange(12.0).reshape(6, 2), "five": jnp.zeros(5), "one": jnp.zeros(())}
apart = jax.jit(lambda tree: spread(tree, mesh(6), axis=0))(tree)
print([mesh(n) and mesh(n).size for n in (1, 2, 5, 6, 7, 8)])
print({name: leaf.addressable_shards[0].data.shape for name, leaf in apart.items()})
print({name: leaf.addressable_shards[0].data.shape for name, leaf in everywhere(apart, mesh(6)).items()})
print([each_agent(lambda x: x + 1, jnp.arange(n)).tolist() == list(range(1, n + 1)) for n in (1, 3, 4, 6, 7)])
"""


def test_what_is_spread_lies_in_parts_and_what_cannot_be_lies_everywhere() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, check=True)
    sizes, parts, whole, each = done.stdout.splitlines()
    assert sizes == "[None, 2, None, 3, None, 4]"
    assert parts == "{'agents': (2, 2), 'five': (5,), 'one': ()}"
    assert whole == "{'agents': (6, 2), 'five': (5,), 'one': ()}"
    assert each == "[True, True, True, True, True]"


def test_every_core_is_a_device_unless_the_user_decided() -> None:
    """On a CPU; a number the user chose stays."""
    program = "import khop, jax; print(len(jax.devices()))"
    bare = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    counts = []
    for environment in (bare, bare | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts == [sharding.usable_cores(), 3]


def test_jax_in_use_stays_as_it_is() -> None:
    """Importing khop late must not fail."""
    before = jax.devices()
    sharding.every_core_a_device()
    np.testing.assert_array_equal(jax.devices(), before)
