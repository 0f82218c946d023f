"""A user's own grid: a pandapower net in JSON, and curves in the three files of the MAPDN benchmark.

``load_active.csv``, ``load_reactive.csv`` and ``pv_active.csv`` each have a time in their first column and then one
column per row of ``net.load`` or ``net.sgen``, in MW or Mvar, in their order (Wang et al. 2021).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from khop.errors import InputError
from khop.systems.distribution_grid.pandapower_grid import as_grid
from khop.systems.distribution_grid.profiles import DAY, STEP, Profiles, gathered
from khop.systems.distribution_grid.storage import Data, stored

LOAD, REACTIVE, SUN = FILES = ("load_active.csv", "load_reactive.csv", "pv_active.csv")


def own_grid_and_profiles(net: str, data: str) -> Data:
    """The grid of a net and its profiles, checked, and kept under a hash of the files so that it is read once.

    Args:
        net: a pandapower net in JSON.
        data: a folder with the three files.

    Raises:
        InputError: whatever is wrong with them, in one sentence.
    """
    files = [Path(net), *(Path(data) / name for name in FILES)]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"There is no file {file}: give a pandapower net in JSON, and a folder with {', '.join(FILES)}."
            )
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return stored(f"own-{digest.hexdigest()[:16]}-v1", functools.partial(_build, *files))


def _build(net_file: Path, load_file: Path, reactive_file: Path, sun_file: Path) -> Data:
    try:
        import pandapower
    except ImportError:
        raise InputError("Own grids are read by pandapower: install khop with its extra power.") from None
    try:
        net = pandapower.from_json(str(net_file))
        loads, inverters = len(net.load), len(net.sgen)
    except Exception as error:  # pandapower raises whatever its parsers raise
        raise InputError(
            f"{net_file} is no pandapower net in JSON ({error}): write one by pandapower.to_json."
        ) from None
    active, interval = _table(load_file, loads, "load")
    reactive, reactive_interval = _table(reactive_file, loads, "load")
    sun, sun_interval = _table(sun_file, inverters, "sgen")
    for file, values, own in ((reactive_file, reactive, reactive_interval), (sun_file, sun, sun_interval)):
        if len(values) != len(active) or own != interval:
            raise InputError(
                f"{file} has {len(values)} rows of {own} minutes, but {load_file.name} {len(active)} of {interval}: "
                "all three files must cover the same times."
            )
    if np.min(sun) < 0:
        raise InputError(f"{sun_file} has negative values: photovoltaic power is counted as fed in.")
    net.sgen["max_p_mw"] = np.maximum(sun.max(0), 1e-6)
    net.load[["p_mw", "q_mvar"]] = np.stack([active.mean(0), reactive.mean(0)], 1)
    net.sgen[["p_mw", "q_mvar"]] = np.stack([sun.mean(0), 0 * sun.mean(0)], 1)
    if "zone" not in net.bus:
        net.bus["zone"] = "main"
    grid, rows = as_grid(net)
    each = np.arange(loads)
    buses, load_active, load_reactive = gathered(
        rows[net.bus.index.get_indexer(net.load.bus)], each, np.ones(loads), np.ones(loads), loads
    )
    return grid, Profiles(interval, active, reactive, sun, buses, load_active, load_reactive, np.eye(inverters))


def _table(file: Path, columns: int, kind: str) -> tuple[Float[np.ndarray, "R C"], int]:
    """The values of a file and the minutes between its rows."""
    import pandas

    try:
        frame = pandas.read_csv(file)
        times = pandas.to_datetime(frame.iloc[:, 0])
    except Exception as error:  # pandas raises whatever its parsers raise
        raise InputError(f"{file} cannot be read as a table with times in its first column: {error}.") from None
    if frame.shape[1] != columns + 1:
        raise InputError(
            f"{file} has {frame.shape[1] - 1} columns after the time, but the net has {columns} rows of {kind}: one "
            "column is needed for each, in their order."
        )
    values = frame.iloc[:, 1:].apply(pandas.to_numeric, errors="coerce").to_numpy(np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    if wrong.size:
        row, column = wrong[0]
        raise InputError(
            f"{file} has no number in row {row + 2}, column {frame.columns[column + 1]!r}: fill the gap, or take the "
            "day out."
        )
    if len(frame) < 2:
        raise InputError(f"{file} has {len(frame)} rows: at least four days are needed.")
    steps = np.diff(times.to_numpy()) / np.timedelta64(1, "m")
    interval = int(steps[0])
    if np.any(steps != interval) or interval < STEP or interval % STEP or DAY % interval:
        raise InputError(
            f"The times of {file} are not evenly spaced by a multiple of {STEP} minutes that divides a day, but by "
            f"{steps.min():g} to {steps.max():g}: resample it."
        )
    if times.iloc[0] != times.iloc[0].normalize():
        raise InputError(f"{file} begins at {times.iloc[0]:%H:%M}: days are counted from midnight, so begin there.")
    if len(frame) * interval < 4 * DAY:
        raise InputError(f"{file} covers {len(frame) * interval / DAY:.1f} days: at least four are needed.")
    return values, interval
