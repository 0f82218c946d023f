"""Figure eight: vehicles on a loop that crosses itself, so that whoever passes the crossing has to miss the others.

The road of Flow's figure eight (Wu et al. 2022; Vinitsky et al. 2018) as Ma et al. (2024) use it. Deliberate
differences beside those of all loops: collisions at the crossing are found from the vehicles' outlines rather than by
teleports, and by default controlled vehicles give way as humans do (published: only the policy prevents a collision).
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from khop.errors import InputError
from khop.system import Episode, Spec, register
from khop.systems.loops.car_following import (
    ACCELERATION,
    INTERVAL,
    STANDSTILL_GAP,
    VEHICLE_LENGTH,
    idm_acceleration,
    safe_speed,
)
from khop.systems.loops.loop import FOLLOWING, PLACE, Loop, LoopState, following, loop_spec, place
from khop.systems.loops.ring import ring_topology
from khop.topology import Topology

LENGTH = 418.0  # m, of the loop: two arcs of 270° with 30 m radius, four arms of 30 m, and the junction
WIDTH = 1.8  # m, of a vehicle
STOP_LINE = 6.2  # m before the middle of the crossing, where the junction begins
VISIBILITY = 4.5  # m before its stop line, from where the minor road sees the main road (SUMO's default)
MARGIN = 1.0  # s between a vehicle that gives way and the next one on the main road
SLOWEST_ARRIVAL = 2.0  # m/s, at least assumed of vehicles on the main road
HARD_BRAKING = 6.0  # m/s²; whoever would have to brake harder to stop at the line drives on
STANDING = 0.3  # m/s
USUAL_SPEED, USUAL_GAP = 10.0, 20.0  # m/s and m, to scale observations by
SIGHT = 50.0  # m from the crossing up to which vehicles on the other road are seen


def course(length: float = LENGTH) -> Float[np.ndarray, "P 2"]:
    """Points in m along the figure eight, evenly spaced, from the crossing northwards."""
    radius = length / (4 + 3 * np.pi)  # of the arcs, and the length of the arms
    along, turn = np.linspace(0, length, 800, endpoint=False), 3 * np.pi / 2 * radius
    ends = np.cumsum([radius, turn, 2 * radius, turn])
    upper, lower = np.pi - (along - ends[0]) / radius, np.pi / 2 + (along - ends[2]) / radius
    none = 0 * along
    pieces = [
        (none, along),
        (radius * (1 + np.cos(upper)), radius * (1 + np.sin(upper))),
        (radius - (along - ends[1]), none),
        (radius * (np.cos(lower) - 1), radius * (np.sin(lower) - 1)),
        (none, along - length),
    ]
    piece = np.searchsorted(ends, along, side="right")
    return np.array([np.choose(piece, [pair[axis] for pair in pieces]) for axis in (0, 1)]).T


class Approach(NamedTuple):
    """Where vehicles stand towards the crossing, each (V,). Main and minor road meet at 0 m and half the loop."""

    to_main: Bool[Array, " V"]  # on its way to the crossing on the main road; else on the minor one
    way: Float[Array, " V"]  # m from the front bumper to where the other road's vehicles pass
    past: Float[Array, " V"]  # m from where they passed last time to the front bumper


def approach(state: LoopState) -> Approach:
    """Each vehicle's way to its next crossing and from its last one."""
    half = state.length / 2
    along = (state.position + WIDTH / 2) % state.length
    past = along % half
    return Approach(along >= half, half - past, past)


def on_crossing(at: Approach) -> Bool[Array, " V"]:
    """Who has entered the crossing and not left it yet."""
    return at.past < WIDTH + VEHICLE_LENGTH


@register("figure-eight")
class FigureEight(Loop):
    """Vehicles on a figure eight whose minor road gives way to its main road.

    Observation of an agent, dimensionless: own speed, gap, speed of the vehicle ahead relative to the own, sine
    and cosine of the position, way to the crossing, and of the vehicles on the other road that will be there next
    before and next after the agent: how much nearer or farther they are, and their speed.
    Action: acceleration. Humans on the minor road wait for a gap on the main road; everyone waits for those who are on
    the crossing.
    """

    vehicles: int = 14
    """Number of vehicles."""
    controlled: int = 14
    """How many of them are agents, n."""
    neighbours: Literal["order", "conflict"] = eqx.field(static=True, default="order")
    """Whom agents hear: those ahead and behind, or also the one half the loop away, met at the crossing."""
    target_speed: float = 20.0
    """Speed in m/s that the published reward wants."""
    right_of_way: bool = True
    """The guard makes controlled vehicles give way as humans do."""
    horizon: int = 1500
    """Steps of 0.1 s in an episode."""

    def __check_init__(self) -> None:
        if self.neighbours not in ("order", "conflict"):
            raise InputError(f"Agents hear their neighbours by order or by conflict, not by {self.neighbours!r}.")

    @property
    def lengths(self) -> tuple[float, float]:
        return LENGTH, LENGTH

    @property
    def spec(self) -> Spec:
        return _spec(self)

    @property
    def topology(self) -> Topology:
        return conflict_topology(self.controlled) if self.neighbours == "conflict" else ring_topology(self.controlled)

    def observe(self, state: LoopState) -> Float[Array, "V d"]:
        at = approach(state)
        entries = following(state, USUAL_SPEED, USUAL_GAP) + place(state)
        entries += (1 - 2 * jnp.minimum(at.way / SIGHT, 1.0),)
        return jnp.stack(entries + rivals(state, at), axis=-1)

    def human_acceleration(self, state: LoopState) -> Float[Array, " V"]:
        to_stop = stop_gap(state, approach(state))
        stopping = idm_acceleration(to_stop, state.speed, jnp.zeros_like(state.speed))
        return jnp.minimum(super().human_acceleration(state), stopping)

    def safe_speed(self, state: LoopState) -> Float[Array, " V"]:
        behind = super().safe_speed(state)
        if not self.right_of_way:
            return behind
        return jnp.minimum(behind, safe_speed(stop_gap(state, approach(state)), jnp.zeros_like(behind)))

    def collided(self, state: LoopState) -> Bool[Array, ""]:
        at = approach(state)
        return super().collided(state) | (
            jnp.any(on_crossing(at) & at.to_main) & jnp.any(on_crossing(at) & ~at.to_main)
        )

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Also ``waiting``: seconds that a vehicle stands (below 0.3 m/s) for each time it passes the crossing."""
        speed = episode.info["speed"]
        passages = INTERVAL * speed.sum() / (LENGTH / 2)
        standing = INTERVAL * jnp.sum(speed < STANDING)
        return super().metrics(episode) | {"waiting": standing / jnp.maximum(passages, 1.0)}


def stop_gap(state: LoopState, at: Approach) -> Float[Array, " V"]:
    """How far the road is free for whoever has to give way, in m: s0 beyond the stop line, for those who are past it up
    to the crossing itself. Infinite for whoever need not stop, or cannot any more.

    Either road gives way to those from the other who are on the crossing or cannot stop before it. The minor road also
    waits until it sees the main road, and the next vehicle there is a second farther away in time than the own way over
    the crossing takes, from where one is, accelerating at a.
    """
    braking = jnp.square(state.speed) / (2 * HARD_BRAKING)
    entering, leaving = at.way < braking, on_crossing(at)
    main = jnp.any((entering & at.to_main) | (leaving & ~at.to_main))
    minor = jnp.any((entering & ~at.to_main) | (leaving & at.to_main))
    over = at.way + WIDTH + VEHICLE_LENGTH
    clearing = (jnp.sqrt(jnp.square(state.speed) + 2 * ACCELERATION * over) - state.speed) / ACCELERATION
    arrival = jnp.where(at.to_main, at.way / jnp.maximum(state.speed, SLOWEST_ARRIVAL), jnp.inf).min()
    line = at.way - (STOP_LINE - WIDTH / 2)
    blocked = jnp.where(at.to_main, minor, main | (arrival < clearing + MARGIN) | (line > VISIBILITY))
    free = jnp.where(line >= braking, line + STANDSTILL_GAP, at.way)
    return jnp.where(blocked & ~entering, free, jnp.inf)


def rivals(state: LoopState, at: Approach) -> tuple[Array, ...]:
    """Of the vehicles on the other road: the lead and speed of the last before and of the first after each vehicle.

    Leads are in units of the sight, from −1 (as near) to 1 (none in sight); who is still on the crossing counts by how
    far it has gone.
    """
    way = jnp.concatenate([at.way, jnp.where(on_crossing(at), -at.past, jnp.inf)])
    to_main = jnp.concatenate([at.to_main, ~at.to_main])
    speed = jnp.tile(state.speed, 2)
    lead = jnp.where(at.to_main[:, None] != to_main, way - at.way[:, None], jnp.inf)  # (V, 2V)
    found: list[Array] = []
    for distance in (jnp.where(lead <= 0, -lead, jnp.inf), jnp.where(lead > 0, lead, jnp.inf)):
        nearest = jnp.argmin(distance, axis=1)
        near = jnp.minimum(distance.min(axis=1), SIGHT)
        found += [2 * near / SIGHT - 1, jnp.where(near < SIGHT, speed[nearest] / USUAL_SPEED - 1, 0.0)]
    return tuple(found)


@functools.lru_cache
def conflict_topology(agents: int) -> Topology:
    """The order round the loop, and whoever is half the agents away: evenly spread, they meet at the crossing."""
    order, opposite = ring_topology(agents), np.arange(agents // 2)
    pairs = np.stack([opposite, opposite + (agents + 1) // 2], axis=1)
    return Topology.from_edges(agents, np.concatenate([order.edges, pairs]), positions=order.positions)


@functools.lru_cache
def _spec(eight: FigureEight) -> Spec:
    units = ("10 m/s, less 1", "20 m, less 1", "10 m/s")
    observed = dict(zip(FOLLOWING, units, strict=True)) | {name: "" for name in PLACE}
    observed |= {
        "crossing": "25 m, from −1 (50 m or more away) to 1",
        "lead of the rival before": "25 m, less 1",
        "speed of the rival before": "10 m/s, less 1",
        "lag of the rival after": "25 m, less 1",
        "speed of the rival after": "10 m/s, less 1",
    }
    # Who is the next rival changes at a stroke, which is most of what changes in a step, and is never foreseen to the
    # tenth of a second; five steps ahead the same models explain about half of the change.
    return loop_spec(eight, observed, {"waiting": "s per passage"}, ("all-human", "full-throttle"), gate=5.0)
