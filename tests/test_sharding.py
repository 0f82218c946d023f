"""Agents on one device and on four: the same training."""

import json
import os
import subprocess
import sys

PROGRAM = """
import dataclasses, json, jax, khop
from khop.methods import METHODS
from khop.training import Training
from khop.worlds.influence import Influence

small = dataclasses.replace(
    METHODS["dials"], recurrent=8, hidden=(8,), environments=2, rollout=16,
    influence=Influence(collected=4, predictor_epochs=2, predictor_hidden=4, refresh=32),
)
small = dataclasses.replace(small, learner=dataclasses.replace(small.learner, epochs=1, minibatches=2))
training = Training(khop.make("warehouse", side=2, horizon=10), small, 1000)
iterate, state = training.compiled(), training.init_seeds([0])
for _ in range(3):
    state, metrics = iterate(state)
weights = jax.tree.leaves(state.learner.actors.networks)[0]
print(json.dumps([len(weights.sharding.device_set), {name: float(value[0]) for name, value in metrics.items()}]))
"""


def trained(devices: int) -> tuple[int, dict[str, float]]:
    """How many devices take part, and the metrics of the third iteration."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"  # compiles faster
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    held, metrics = json.loads(done.stdout.splitlines()[-1])
    return held, metrics


def test_four_devices_train_as_one_does() -> None:
    """To floating-point noise; and all four take part."""
    (one, alone), (four, together) = trained(1), trained(4)
    assert (one, four) == (1, 4)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert abs(value - together[name]) < 1e-4 + 1e-3 * abs(value), name
