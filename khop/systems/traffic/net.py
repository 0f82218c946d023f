"""Traffic lights on the user's own SUMO network."""

from __future__ import annotations

import functools
from pathlib import Path
from xml.etree import ElementTree

from khop.errors import InputError
from khop.system import register
from khop.systems.traffic import sumo
from khop.systems.traffic.system import Scenario, Traffic, arguments


@functools.lru_cache(maxsize=8)
def check(scenario: Scenario) -> None:
    """Have SUMO load everything once.

    Raises:
        InputError: in SUMO's words, if it cannot.
    """
    for file in (*scenario.routes, *scenario.additional):
        if not file.is_file():
            raise InputError(f"There is no file {file}: give SUMO's routes, e.g. demand.rou.xml.")
    if not scenario.net.is_file():
        raise InputError(f"There is no network file {scenario.net}: give a SUMO network, e.g. city.net.xml.")
    sumo.run("sumo", *arguments(scenario, -1), "--end", str(scenario.begin), "--route-steps", "0")


@register("traffic-net")
class TrafficNet(Traffic):
    """Traffic lights of any SUMO network: --net FILE --routes FILE, or --sumocfg FILE."""

    net: str = ""
    """The network, a .net.xml file."""
    routes: str = ""
    """Its demand, one or more .rou.xml files, separated by commas."""
    sumocfg: str = ""
    """A SUMO configuration, from which network, routes, additional files, begin and end are taken."""
    begin: int | None = None
    """Second at which an episode begins; by default the configuration's, or 0. It lasts until that ends, or 3600 s."""

    @property
    def setup(self) -> Scenario:
        scenario = self._given()
        if self.begin is not None:
            scenario = scenario._replace(begin=self.begin)
        check(scenario)
        return scenario

    def _given(self) -> Scenario:
        if self.sumocfg:
            return configured(Path(self.sumocfg).absolute())
        if not self.net or not self.routes:
            raise InputError("traffic-net wants a network and its demand: --net FILE --routes FILE, or --sumocfg FILE.")
        return Scenario(Path(self.net).absolute(), tuple(Path(f.strip()).absolute() for f in self.routes.split(",")))


@functools.lru_cache(maxsize=8)
def configured(file: Path) -> Scenario:
    """What a SUMO configuration says about network, demand and time; its outputs are not taken over."""
    try:
        root = ElementTree.parse(file)
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{file} is no SUMO configuration ({error}): give a .sumocfg file.") from error
    values = {tag.tag.rpartition("}")[2]: tag.get("value", tag.get("v", "")) for tag in root.iter()}

    def paths(*names: str) -> tuple[Path, ...]:
        text = next((values[name] for name in names if values.get(name)), "")
        return tuple((file.parent / part.strip()).absolute() for part in text.split(",") if part.strip())

    nets, routes = paths("net-file", "net", "n"), paths("route-files", "routes", "r")
    if not nets or not routes:
        raise InputError(f"{file} names no network or no routes: a configuration has a net-file and route-files.")
    begin = int(float(values.get("begin") or values.get("b") or 0))
    end = int(float(values.get("end") or values.get("e") or -1))
    duration = end - begin if end > begin else Scenario(nets[0], routes).duration
    return Scenario(nets[0], routes, paths("additional-files", "additional", "a"), begin, duration)
