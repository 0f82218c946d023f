"""Grids from pandapower, which is needed while a grid is built and never again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from khop.errors import InputError
from khop.systems.distribution_grid.grid import MAIN, Grid

if TYPE_CHECKING:
    from pandapower import pandapowerNet

UNDERSTOOD = {"bus", "line", "trafo", "load", "sgen", "shunt", "ext_grid", "switch"}
# Columns of pandapower's internal branch and bus tables, which are MATPOWER's with shunt conductances added.
FROM, TO, R, X, B, TAP, SHIFT, STATUS = 0, 1, 2, 3, 4, 8, 9, 10
R_ASYM, X_ASYM, G, G_ASYM, B_ASYM = 21, 22, 23, 24, 25
GS, BS = 4, 5


def solved(net: pandapowerNet) -> None:
    """Run pandapower's power flow on a net.

    Raises:
        InputError: if it does not converge.
    """
    import pandapower

    try:
        pandapower.runpp(
            net,
            calculate_voltage_angles=True,
            init="dc",
            tolerance_mva=1e-9,
            max_iteration=50,
            numba=False,
            lightsim2grid=False,
        )
    except pandapower.LoadflowNotConverged:
        raise InputError(
            "The power flow of the net does not converge as given: lower its loads, or check impedances and voltages."
        ) from None


def as_grid(net: pandapowerNet) -> tuple[Grid, Int[np.ndarray, " B"]]:
    """The grid of a pandapower net with one slack, and where its buses went.

    Lines, transformers, shunts and closed switches are as pandapower models them. ``sgen`` are the inverters, with
    their largest power ``max_p_mw`` or else ``p_mw``; ``bus.zone`` names zones, where "main" or nothing is no zone.

    Returns:
        The grid, and for every row of ``net.bus`` its bus in the grid (several where switches join them).

    Raises:
        InputError: if the net holds what a distribution grid here cannot have, or its power flow does not converge.
    """
    _check(net)
    solved(net)
    internal, lookup = net._ppc, net._pd2ppc_lookups
    bus, branch = internal["bus"], internal["branch"]
    slack = lookup["bus"][net.ext_grid.bus.iloc[0]]
    order = np.append(slack, np.setdiff1d(lookup["bus"][net.bus.index], slack))  # without those that switches merge
    place = np.zeros(len(bus), int)
    place[order] = np.arange(len(order))
    rows = place[lookup["bus"][net.bus.index]]
    name = np.zeros(len(order), int)
    zone_of = np.full(len(order), MAIN)
    name[rows[::-1]] = net.bus.index[::-1]
    names, numbers = np.unique(net.bus.zone.fillna("main").astype(str), return_inverse=True)
    keep = ~np.isin(names, ("main", "", "nan", "None"))
    zone_of[rows] = np.where(keep, np.cumsum(keep) - 1, MAIN)[numbers]

    on = branch[:, STATUS].real == 1
    first, last = lookup["branch"]["line"] if len(net.line) else (0, 0)
    is_line = (np.arange(len(branch)) >= first) & (np.arange(len(branch)) < last)
    branch, is_line = branch[on], is_line[on]
    if np.any(branch[:, [R_ASYM, X_ASYM]]):
        raise InputError("The net has branches with different impedances in both directions: replace them by lines.")
    shunt = (branch[:, G] + 1j * branch[:, B]) / 2
    tap = np.where(branch[:, TAP] == 0, 1, branch[:, TAP])
    peak = net.sgen.max_p_mw if "max_p_mw" in net.sgen else net.sgen.p_mw
    grid = Grid(
        base=float(internal["baseMVA"]),
        slack_voltage=complex(internal["internal"]["V"][slack]),
        from_bus=place[branch[:, FROM].real.astype(int)],
        to_bus=place[branch[:, TO].real.astype(int)],
        impedance=branch[:, R] + 1j * branch[:, X],
        shunt_from=shunt,
        shunt_to=shunt + (branch[:, G_ASYM] + 1j * branch[:, B_ASYM]) / 2,
        ratio=tap * np.exp(1j * np.radians(branch[:, SHIFT].real)),
        is_line=is_line,
        shunt=((bus[:, GS] + 1j * bus[:, BS]) / internal["baseMVA"])[order],
        bus_name=name,
        zone=zone_of,
        inverter_bus=rows[net.bus.index.get_indexer(net.sgen.bus)],
        inverter_peak=peak.fillna(net.sgen.p_mw).to_numpy(float),
    )
    return grid, rows


def _check(net: Any) -> None:
    for table in net:
        frame = net[table]
        if hasattr(frame, "in_service") and table not in UNDERSTOOD and len(frame) and frame.in_service.any():
            raise InputError(
                f"The net has {len(frame)} elements of type {table}, of which a grid here knows nothing: keep to "
                f"{', '.join(sorted(UNDERSTOOD))}."
            )
    for table in ("bus", "load", "sgen"):
        idle = np.flatnonzero(~net[table].in_service.to_numpy(bool))
        if idle.size:
            raise InputError(f"Row {idle[0]} of {table} is out of service: remove such rows from the net.")
    if len(net.ext_grid) != 1:
        raise InputError(f"The net has {len(net.ext_grid)} external grids: one is needed, the slack.")
    if not len(net.sgen):
        raise InputError("The net has no sgen: place one for every inverter.")
    if "const_z_p_percent" in net.load and net.load.filter(like="const_").to_numpy(float).any():
        raise InputError("The net has loads that depend on voltage: set const_z and const_i of all loads to 0.")
    _check_islands(net)


def _check_islands(net: Any) -> None:
    import pandapower.topology

    unsupplied = sorted(pandapower.topology.unsupplied_buses(net))
    if unsupplied:
        raise InputError(
            f"Bus {unsupplied[0]} and {len(unsupplied) - 1} more are an island without a slack: connect them to the "
            "external grid, or remove them."
        )
