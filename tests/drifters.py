"""A hosted system without a simulator, for tests."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from khop.hosts.pool import Engine
from khop.hosts.system import HostedSystem
from khop.system import DiscreteActions, Spec
from khop.topology import Topology

LAYOUT = {
    "obs": ((2, 2), "float32"),
    "action": ((2,), "int32"),
    "reward": ((2,), "float32"),
    "seed": ((), "int64"),
}
LINE = Topology.line(2)


def engine(timeout_s=60.0, **options):
    return Engine(str(Path(__file__).with_name("drifting.py")), "Drifting", LAYOUT, options, timeout_s)


class Drifters(HostedSystem):
    """Two drifting numbers that want to be 0."""

    horizon: int = 6
    fail_at: int = -1
    how: str = ""
    timeout: float = 60.0

    @property
    def spec(self):
        return _spec(self.horizon)

    @property
    def topology(self):
        return LINE

    @property
    def engine(self):
        return engine(self.timeout, fail_at=self.fail_at, how=self.how)

    def metrics(self, episode):
        return super().metrics(episode) | {"far": jnp.abs(episode.obs[-1, :, 0]).mean()}


@functools.cache
def _spec(horizon):
    return Spec(
        n=2,
        observation_sizes=np.array([2, 2]),
        observation_names=("place", "time"),
        observation_units=("m", "steps"),
        action=DiscreteActions(np.array([2, 2]), ("left", "right")),
        horizon=horizon,
        control_interval_s=1.0,
        metrics={"return": "m/step", "far": "m"},
        whole_episodes=True,
    )
