"""A user's own grid: read as pandapower means it, and refused in one sentence."""

import copy
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandapower
import pandas
import pytest
from test_power_flow import meshed_net

import khop
from khop.errors import InputError

DAYS, INTERVAL = 5, 15


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KHOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tables() -> dict[str, pandas.DataFrame]:
    random = np.random.default_rng(0)
    times = pandas.date_range("2021-05-01", periods=DAYS * 24 * 60 // INTERVAL, freq=f"{INTERVAL}min")
    found = {}
    for name, columns, size in (("load_active", 3, 1.0), ("load_reactive", 3, 0.3), ("pv_active", 2, 0.5)):
        found[name] = pandas.DataFrame(size * random.uniform(0.1, 1, (len(times), columns))).round(4)
        found[name].insert(0, "time", times)
    found["load_active"][2] *= 0.1
    found["load_reactive"][2] *= 0.1
    found["pv_active"][1] *= 0.2
    return found


def written(folder: Path, net: pandapower.pandapowerNet, frames: dict[str, pandas.DataFrame]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    pandapower.to_json(net, str(folder / "net.json"))
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    return {"net": str(folder / "net.json"), "data": str(folder)}


def test_the_first_moment_of_an_own_grid_is_pandapowers(tmp_path: Path) -> None:
    net, frames = meshed_net(), tables()
    system = khop.make("grid-own", **written(tmp_path / "own", net, frames), noise=0.0, horizon=480)
    assert system.spec.n == 2  # zones north and south
    state, _ = jax.jit(system.reset)(jax.random.key(0))
    row = int(state.start) // (INTERVAL // 3)
    net.load["p_mw"], net.load["q_mvar"] = (frames[name].iloc[row, 1:].to_numpy(float) for name in list(frames)[:2])
    net.sgen["p_mw"], net.sgen["q_mvar"] = frames["pv_active"].iloc[row, 1:].to_numpy(float), 0.0
    pandapower.runpp(net, numba=False, lightsim2grid=False, calculate_voltage_angles=True)
    np.testing.assert_allclose(np.sort(state.voltage), np.sort(net.res_bus.vm_pu.iloc[:-1]), atol=5e-6)


def test_an_own_grid_is_read_once(tmp_path: Path, cache: Path) -> None:
    arguments = written(tmp_path / "own", meshed_net(), tables())
    khop.make("grid-own", **arguments)
    assert len(list(cache.rglob("*.npz"))) == 1
    khop.make("grid-own", **arguments, agents="inverter")
    assert len(list(cache.rglob("*.npz"))) == 1


Change = Callable[[pandapower.pandapowerNet, dict[str, pandas.DataFrame]], object]


def missing_column(net, frames) -> None:
    del frames["load_reactive"][2]


def gap(net, frames) -> None:
    frames["pv_active"].loc[7, 1] = np.nan


def shorter(net, frames) -> None:
    frames["pv_active"] = frames["pv_active"].iloc[:-1]


def uneven(net, frames) -> None:
    frames["load_active"] = frames["load_active"].drop(index=5)


def late_start(net, frames) -> None:
    for name in frames:
        frames[name]["time"] += pandas.Timedelta(hours=6)


def negative_sun(net, frames) -> None:
    frames["pv_active"].loc[3, 0] = -1.0


def one_day(net, frames) -> None:
    for name in frames:
        frames[name] = frames[name].iloc[:96]


def too_much_load(net, frames) -> None:
    frames["load_active"][0] *= 1e4


def island(net, frames) -> None:
    net.line.loc[[0, 1], "in_service"] = False


def zone_without_inverter(net, frames) -> None:
    net.bus.loc[3, "zone"] = "west"


def two_slacks(net, frames) -> None:
    pandapower.create_ext_grid(net, 3)


def generator(net, frames) -> None:
    pandapower.create_gen(net, 3, 0.1)


def no_zones(net, frames) -> None:
    net.bus["zone"] = "main"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (missing_column, r"load_reactive.csv has 2 columns after the time, but the net has 3 rows of load"),
        (gap, r"pv_active.csv has no number in row 9, column '1'"),
        (shorter, r"pv_active.csv has 479 rows of 15 minutes, but load_active.csv 480"),
        (uneven, r"load_active.csv are not evenly spaced"),
        (late_start, r"load_active.csv begins at 06:00"),
        (negative_sun, r"pv_active.csv has negative values"),
        (one_day, r"covers 1.0 days: at least four"),
        (too_much_load, r"does not converge"),
        (island, r"Bus 2 and 0 more are an island"),
        (zone_without_inverter, r"zone of bus 3 has no inverter"),
        (two_slacks, r"2 external grids"),
        (generator, r"elements of type gen"),
        (no_zones, r"no zones"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_kept(
    change: Change, complaint: str, tmp_path: Path, cache: Path
) -> None:
    net, frames = copy.deepcopy(meshed_net()), tables()
    change(net, frames)
    with pytest.raises(InputError, match=complaint) as refused:
        khop.make("grid-own", **written(tmp_path / "own", net, frames))
    assert len(str(refused.value).splitlines()) == 1
    if change is not no_zones:  # which single inverters can do without
        assert not list(cache.rglob("*"))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs both"):
        khop.make("grid-own", net="net.json")
    with pytest.raises(InputError, match="There is no file"):
        khop.make("grid-own", net=str(tmp_path / "net.json"), data=str(tmp_path))
    arguments = written(tmp_path / "own", meshed_net(), tables())
    Path(arguments["net"]).write_text("{")
    with pytest.raises(InputError, match="no pandapower net in JSON"):
        khop.make("grid-own", **arguments)
