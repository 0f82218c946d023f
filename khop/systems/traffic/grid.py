"""The five-by-five grid of Chu et al. (2020), built from its description with netconvert.

Streets run east-west with two lanes, avenues north-south with one. Where a light's own programme has three phases,
agents choose among five.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from khop.system import register
from khop.systems.traffic import sumo
from khop.systems.traffic.system import Scenario, Traffic

SIDE = 5  # lights in a row
SPACING, MARGIN = 200.0, 75.0  # m, between lights and from the outermost ones to the edge of the network
GREEN, YELLOW = 30, 3  # s, in the lights' own programme
PHASES = ("GGgrrrGGgrrr", "rrrGrGrrrGrG", "rrrGGrrrrGGr", "rrrGGGrrrrrr", "rrrrrrrrrGGG")  # N, E, S, W × R, T, L
OWN_PHASES = 3  # the lights' own programme knows only the first ones
BIN = 300  # s, over which a flow is constant
FLOWS = (  # origins, destinations, veh/h at the peak, first bin, shape over the bins
    ((12, 13, 14), (2, 3, 4), 660.0, 0, (0.4, 0.7, 0.9, 1.0, 0.75, 0.5, 0.25)),
    ((16, 18, 20), (6, 8, 10), 1100.0, 0, (0.4, 0.7, 0.9, 1.0, 0.75, 0.5, 0.25)),
    ((2, 3, 4), (14, 13, 12), 555.0, 3, (0.3, 0.8, 0.9, 1.0, 0.8, 0.6, 0.2)),
    ((6, 8, 10), (20, 18, 16), 925.0, 3, (0.3, 0.8, 0.9, 1.0, 0.8, 0.6, 0.2)),
)


@register("traffic-grid")
class TrafficGrid(Traffic):
    """The grid of 25 traffic lights of Chu et al. (2020), with its four flows that swell and ebb."""

    interval: int = 5
    yellow: int = 2
    teleport: int = 600
    reference_observation: bool = False
    """Observe, and be paid, as published: by link, which counts lanes up to three times, within 50 m of the light."""

    @property
    def setup(self) -> Scenario:
        net, routes = files()
        return Scenario(net, (routes,))

    @property
    def reference(self) -> np.ndarray | None:
        links = self.network.links if self.reference_observation else ()
        return np.array([[light[link][0] for link in sorted(light)] for light in links]) if links else None


@functools.cache
def files() -> tuple[Path, Path]:
    """The grid's network and demand, built when first asked for."""
    parts = {"nod": _nodes(), "edg": _edges(), "con": _connections(), "tll": _programmes(), "rou": _routes()}
    texts = {name: "\n".join(lines) for name, lines in parts.items()}
    folder = sumo.generated("grid", str(texts), lambda into: _build(into, texts))
    return folder / "grid.net.xml", folder / "grid.rou.xml"


def _build(folder: Path, texts: dict[str, str]) -> None:
    roots = {"nod": "nodes", "edg": "edges", "con": "connections", "tll": "tlLogics", "rou": "routes"}
    for name, text in texts.items():
        (folder / f"grid.{name}.xml").write_text(f"<{roots[name]}>\n{text}\n</{roots[name]}>\n")
    sumo.run(
        "netconvert",
        *("--node-files", folder / "grid.nod.xml", "--edge-files", folder / "grid.edg.xml"),
        *("--connection-files", folder / "grid.con.xml", "--tllogic-files", folder / "grid.tll.xml"),
        *("--output-file", folder / "grid.net.xml", "--no-turnarounds", "true", "--no-warnings", "true"),
    )


def _around(light: int) -> tuple[str, str, str, str]:
    """The nodes north, east, south and west of a light; lights count row by row from the south-west corner."""
    row, column = divmod(light - 1, SIDE)
    north = f"nt{light + SIDE}" if row < SIDE - 1 else f"np{3 * SIDE - column}"
    east = f"nt{light + 1}" if column < SIDE - 1 else f"np{SIDE + 1 + row}"
    south = f"nt{light - SIDE}" if row > 0 else f"np{1 + column}"
    west = f"nt{light - 1}" if column > 0 else f"np{4 * SIDE - row}"
    return north, east, south, west


def _lights() -> range:
    return range(1, SIDE * SIDE + 1)


def _nodes() -> Iterator[str]:
    for light in _lights():
        row, column = divmod(light - 1, SIDE)
        x, y = column * SPACING, row * SPACING
        yield f'<node id="nt{light}" x="{x}" y="{y}" type="traffic_light" tl="nt{light}"/>'
        for node, dx, dy in zip(_around(light), (0, 1, 0, -1), (1, 0, -1, 0), strict=True):
            if node.startswith("np"):
                yield f'<node id="{node}" x="{x + dx * MARGIN}" y="{y + dy * MARGIN}" type="priority"/>'


def _edges() -> Iterator[str]:
    for light in _lights():
        for side, node in enumerate(_around(light)):
            kind = 'priority="2" numLanes="2" speed="20"' if side % 2 else 'priority="1" numLanes="1" speed="11"'
            yield f'<edge id="{node}_nt{light}" from="{node}" to="nt{light}" {kind}/>'
            if node.startswith("np"):
                yield f'<edge id="nt{light}_{node}" from="nt{light}" to="{node}" {kind}/>'


def _movements(light: int) -> Iterator[str]:
    """From, to and lanes of the twelve controlled links: from north, east, south, west; right, through, left."""
    around = _around(light)
    for side, origin in enumerate(around):
        for turn, lanes in zip(
            (-1, 2, 1), ((0, 0), (0, 0), (0, 1)) if side % 2 == 0 else ((0, 0), (0, 0), (1, 0)), strict=True
        ):
            target = around[(side + turn) % 4]
            yield (f'from="{origin}_nt{light}" to="nt{light}_{target}" fromLane="{lanes[0]}" toLane="{lanes[1]}"')


def _connections() -> Iterator[str]:
    for light in _lights():
        for movement in _movements(light):
            yield f"<connection {movement}/>"


def _programmes() -> Iterator[str]:
    for light in _lights():
        # SUMO runs the programme whose name sorts last.
        for name, phases in (("actions", PHASES), ("own", PHASES[:OWN_PHASES])):
            yield f'<tlLogic id="nt{light}" type="static" programID="{name}" offset="0">'
            for green in phases:
                yield f'<phase duration="{GREEN}" state="{green}"/>'
                yield f'<phase duration="{YELLOW}" state="{green.replace("G", "y").replace("g", "y")}"/>'
            yield "</tlLogic>"
        for index, movement in enumerate(_movements(light)):
            yield f'<connection {movement} tl="nt{light}" linkIndex="{index}"/>'


def _routes() -> Iterator[str]:
    yield '<vType id="car" length="5" accel="5" decel="10"/>'
    inward = {node: f"{node}_nt{light}" for light in _lights() for node in _around(light) if node.startswith("np")}
    outward = {node: f"nt{light}_{node}" for light in _lights() for node in _around(light) if node.startswith("np")}
    flows = [
        (BIN * (first + step), origin, target, share * peak)
        for origins, targets, peak, first, shape in FLOWS
        for step, share in enumerate(shape)
        for origin, target in zip(origins, targets, strict=True)
    ]
    for number, (begin, origin, target, rate) in enumerate(sorted(flows)):
        yield (
            f'<flow id="f{number}" type="car" from="{inward[f"np{origin}"]}" to="{outward[f"np{target}"]}" '
            f'begin="{begin}" end="{begin + BIN}" vehsPerHour="{rate}" departPos="random_free"/>'
        )
