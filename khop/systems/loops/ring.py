"""Ring attenuation: stop-and-go waves that appear by themselves on a ring, and vehicles that dissolve them.

The ring of Sugiyama et al. (2008) and Stern et al. (2018) as benchmarked by Flow (Vinitsky et al. 2018) and, with all
vehicles controlled, by Ma et al. (2024).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from khop.errors import InputError
from khop.system import Episode, Spec, register
from khop.systems.loops.car_following import INTERVAL
from khop.systems.loops.loop import FOLLOWING, PLACE, Loop, LoopState, following, loop_spec, place
from khop.topology import Topology

USUAL_SPEED, USUAL_GAP = 5.0, 10.0  # m/s and m, to scale observations by
CALM = 0.5  # m/s, spread of the speeds below which there is no wave


def course(length: float) -> Float[np.ndarray, "P 2"]:
    """Points in m round a ring, evenly spaced, from position 0 on."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return length / (2 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@functools.lru_cache
def ring_topology(agents: int) -> Topology:
    """Agents in the order of their vehicles round the loop."""
    return Topology.ring(agents) if agents >= 3 else Topology.line(agents)


@functools.lru_cache
def backwards(agents: int) -> Topology:
    """Whom an agent affects at once: the one behind, never the one ahead."""
    place = np.arange(agents if agents >= 3 else agents - 1)
    return Topology.from_edges(agents, np.stack([(place + 1) % agents, place], axis=1), directed=True)


@register("ring")
class Ring(Loop):
    """Vehicles on a ring road whose human drivers fall into stop-and-go waves.

    Observation of an agent, dimensionless: own speed, gap, speed of the vehicle ahead relative to the own, speed
    of uniform flow on this ring; with ``place``, sine and cosine of the position. Action: acceleration. The length of
    the ring is drawn for every episode.
    """

    vehicles: int = 22
    """Number of vehicles."""
    controlled: int = 22
    """How many of them are agents, n."""
    shortest: float = 220.0
    """Length of the shortest ring in m."""
    longest: float = 270.0
    """Length of the longest ring in m."""
    place: bool = False
    """Observe the position too, although a ring looks the same from everywhere."""

    def __check_init__(self) -> None:
        if not 0 < self.shortest <= self.longest < float("inf"):
            raise InputError(f"A ring needs 0 < shortest ≤ longest, not {self.shortest!r} and {self.longest!r}.")

    @property
    def lengths(self) -> tuple[float, float]:
        return self.shortest, self.longest

    @property
    def spec(self) -> Spec:
        return _spec(self)

    @property
    def topology(self) -> Topology:
        return ring_topology(self.controlled)

    @property
    def feedback(self) -> Topology:
        return backwards(self.controlled)

    def observe(self, state: LoopState) -> Float[Array, "V d"]:
        uniform = jnp.full_like(state.speed, state.uniform_speed / USUAL_SPEED - 1)
        entries = (*following(state, USUAL_SPEED, USUAL_GAP), uniform)
        return jnp.stack(entries + place(state) if self.place else entries, axis=-1)

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Also ``damping_time``: end of the last step at which the speeds' spread exceeds 0.5 m/s; the whole episode
        after a collision.
        """
        spread = episode.info["speed"].std(axis=1)
        waving = jnp.max(jnp.where(spread > CALM, jnp.arange(1, len(spread) + 1), 0))
        damped = jnp.where(episode.info["crashed"][-1], len(spread), waving)
        return super().metrics(episode) | {"damping_time": INTERVAL * damped}


@functools.lru_cache
def _spec(ring: Ring) -> Spec:
    observed = dict(zip(FOLLOWING, ("5 m/s, less 1", "10 m, less 1", "5 m/s"), strict=True))
    observed |= {"speed of uniform flow": "5 m/s, less 1"} | ({name: "" for name in PLACE} if ring.place else {})
    baselines = ("all-human", "full-throttle", "follower-stopper", "pi-saturation")
    return loop_spec(ring, observed, {"damping_time": "s"}, baselines)
