"""What all systems of traffic lights share: spec, rewards, metrics and the engine that runs SUMO."""

from __future__ import annotations

import abc
import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from khop.errors import InputError
from khop.hosts.pool import Engine
from khop.hosts.system import HostedSystem
from khop.system import Controller, DiscreteActions, Episode, Spec
from khop.systems.traffic import simulator, sumo
from khop.systems.traffic.controllers import BASELINES, classical
from khop.systems.traffic.network import Network, read, topology
from khop.topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {
    "return": "reward/step",
    "delay": "s/veh",
    "arrived": "veh",
    "pending": "veh",
    "running": "veh",
    "queue": "veh/lane",
    "waiting": "s",
    "max_waiting": "s",
    "travel_time": "s",
    "teleports": "veh",
    "speed": "m/s",
}
FELT = 200.0  # s, after which what a light chose matters a third as much: a few cycles


class Scenario(NamedTuple):
    """What SUMO simulates."""

    net: Path
    routes: tuple[Path, ...]
    additional: tuple[Path, ...] = ()
    begin: int = 0  # s
    duration: int = 3600  # s


class Traffic(HostedSystem):
    """Traffic lights that choose their next green phase.

    Observation per light, dimensionless: the age of its phase, the phase as a one-hot, and for each lane that leads to
    it the vehicles within 50 m of the stop line, the vehicles that queue (slower than 0.1 m/s) on the whole lane, and
    the waiting time of the first. Action: the green phase to show from now on. Reward per light and step, at the
    interval's end: ``delay``: −(Σ over the vehicles on its incoming lanes of 1 − v / speed limit + the vehicles that
    wait outside the network to enter one of them); ``queue``: −(vehicles that queue there); ``pressure``: −|vehicles on
    incoming − vehicles on outgoing lanes|. Episodes are truncated at their end and never terminate.
    """

    reward: Literal["delay", "queue", "pressure"] = "delay"
    """What a light is paid for."""
    interval: int = 10
    """Seconds between two actions."""
    yellow: int = 3
    """Seconds of yellow before a change of phase."""
    all_red: int = 0
    """Seconds of red after yellow."""
    min_green: int = 0
    """Seconds a phase stays green at least, besides what interval and yellow imply."""
    teleport: int = 300
    """Seconds after which SUMO moves a vehicle that stands in a jam; -1: never."""
    duration: int | None = None
    """Seconds of an episode; by default what the scenario lasts."""
    directed: bool = False
    """Lights hear only those that traffic reaches them from; otherwise also those that they send traffic to."""
    timeout: float = 300.0
    """Seconds after which a simulation that does not answer counts as hung."""
    gui: bool = False
    """Show the simulations in sumo-gui."""

    def __check_init__(self) -> None:
        if self.reward not in ("delay", "queue", "pressure"):
            raise InputError(f"reward must be delay, queue or pressure, not {self.reward!r}.")
        for name, least in (("interval", 1), ("yellow", 0), ("all_red", 0), ("min_green", 0), ("teleport", -1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least} s, not {getattr(self, name)}.")
        if self.interval <= self.yellow + self.all_red:
            raise InputError(
                f"An interval of {self.interval} s leaves no green after {self.yellow} s of yellow and {self.all_red} "
                f"s of red: choose at least {self.yellow + self.all_red + 1} s."
            )
        if not self.timeout > 0:
            raise InputError(f"timeout must be above 0 s, not {self.timeout:g}.")
        if self.gui and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise InputError("There is no screen to show sumo-gui on: run without --gui, or on a desktop.")

    @property
    @abc.abstractmethod
    def setup(self) -> Scenario:
        """The network, its demand and the time to simulate."""

    @property
    def plan(self) -> Scenario:
        """The scenario as long as ``duration`` wants it."""
        scenario = self.setup if self.duration is None else self.setup._replace(duration=self.duration)
        if scenario.duration < self.interval:
            raise InputError(f"duration must be at least one interval of {self.interval} s, not {scenario.duration} s.")
        return scenario

    @property
    def network(self) -> Network:
        """The network's lights."""
        return read(self.plan.net)

    @property
    def topology(self) -> Topology:
        return topology(self.network, self.directed)

    @property
    def spec(self) -> Spec:
        return _spec(self)

    @property
    def engine(self) -> Engine:
        return _engine(self)

    @property
    def reference(self) -> np.ndarray | None:
        """(n, links) the lane of every controlled link, where that is what lights observe as published."""
        return None

    def baseline(self, name: str) -> Controller:
        return classical(name, self.network, self.interval) if name in BASELINES else super().baseline(name)

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """The network coloured by queue, and the course of the episodes."""
        from khop.systems.traffic.figure import traffic_figure

        return traffic_figure(episodes, self.network, float(self.interval))

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        network = {name: episode.info["network"][:, k] for k, name in enumerate(simulator.NETWORK)}
        last = {name: series[-1] for name, series in network.items()}
        whole = super().metrics(episode) | {name: last[name] for name in ("delay", "arrived", "pending", "running")}
        return whole | {
            "queue": episode.info["halting"].mean(),
            "waiting": network["waiting"].mean(),
            "max_waiting": network["max_waiting"].max(),
            "travel_time": last["travel_time"],
            "teleports": last["teleports"],
            "speed": network["speed"].mean(),
        }


@functools.lru_cache(maxsize=8)
def _spec(system: Traffic) -> Spec:
    scenario, network = system.plan, system.network
    if system.reference is None:
        sizes = 1 + network.phases + 3 * (network.incoming >= 0).sum(1)
        phases = [(f"phase {phase}", "one-hot") for phase in range(network.phases)]
        entries = [("phase age", "60 s"), *phases]
        for lane in range(network.incoming.shape[1]):
            entries += [(f"lane {lane} vehicles", "7 veh"), (f"lane {lane} queue", "10 veh")]
            entries += [(f"lane {lane} waiting", "60 s")]
    else:
        sizes = np.full(len(network.lights), system.reference.shape[1])
        entries = [(f"link {link} vehicles", "5 veh") for link in range(system.reference.shape[1])]
    return Spec(
        n=len(network.lights),
        observation_sizes=sizes,
        observation_names=tuple(name for name, _ in entries),
        observation_units=tuple(unit for _, unit in entries),
        action=DiscreteActions(
            np.array([len(states) for states in network.states]),
            tuple(f"phase {phase}" for phase in range(network.phases)),
        ),
        horizon=scenario.duration // system.interval,
        control_interval_s=float(system.interval),
        metrics=METRICS,
        baselines=BASELINES,
        discount=math.exp(-system.interval / FELT),
        gate=1.0,  # who arrives next is most of what changes; what lights do to queues shows all the same
        whole_episodes=True,
    )


@functools.lru_cache(maxsize=8)
def _engine(system: Traffic) -> Engine:
    scenario, network, spec = system.plan, system.network, system.spec
    program = os.fspath(Path(sumo.module("sumo").SUMO_HOME) / "bin" / ("sumo-gui" if system.gui else "sumo"))
    command = [program, *arguments(scenario, system.teleport), *(["--start", "--quit-on-end"] if system.gui else [])]
    options = {
        "command": command,
        "begin": scenario.begin,
        "horizon": spec.horizon,
        "reference": system.reference,
        **{name: getattr(network, name) for name in ("lights", "states", "lanes", "limits", "lengths")},
        **{name: getattr(network, name) for name in ("observed", "incoming", "outgoing", "entries")},
        **{name: getattr(system, name) for name in ("gui", "interval", "yellow", "all_red", "min_green", "reward")},
    }
    layout = {
        "obs": ((spec.n, spec.d), "float32"),
        "action": ((spec.n,), "int32"),
        "reward": ((spec.n,), "float32"),
        "vehicles": ((len(network.lanes),), "float32"),
        "halting": ((network.observed,), "float32"),
        "network": ((len(simulator.NETWORK),), "float32"),
    }
    return Engine(simulator.__file__, "Simulator", layout, options, system.timeout)


def arguments(scenario: Scenario, teleport: int) -> list[str]:
    """SUMO's command line: quiet, nothing written, trips measured."""
    files = ["--net-file", os.fspath(scenario.net), "--route-files", ",".join(map(os.fspath, scenario.routes))]
    if scenario.additional:
        files += ["--additional-files", ",".join(map(os.fspath, scenario.additional))]
    quiet = ["--no-step-log", "true", "--no-warnings", "true", "--duration-log.disable", "true"]
    return [
        *files,
        *("--begin", str(scenario.begin), "--time-to-teleport", str(teleport)),
        *("--device.tripinfo.probability", "1"),
        *quiet,
    ]
