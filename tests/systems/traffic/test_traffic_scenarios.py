"""The grid, the city and RESCO's scenarios."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys
from khop.hosts.episodes import Driven, play
from khop.system import Episode
from khop.systems.traffic import city
from khop.systems.traffic.controllers import FixedCycle, Greedy
from khop.systems.traffic.network import read
from khop.systems.traffic.simulator import NETWORK

ROADS = Path(__file__).parents[2] / "data" / "roads"


# Grid


def test_the_grid_is_that_of_the_literature() -> None:
    """Chu et al. (2020): geometry, link order, phases, graph."""
    system = khop.make("traffic-grid")
    network = system.network
    assert network.lights == tuple(f"nt{number}" for number in range(1, 26))
    assert len(network.lanes) == 180
    assert network.observed == 150
    assert sorted({round(float(length), 1) for length in network.lengths}) == [64.6, 67.8, 179.2, 185.6]
    assert set(zip(network.limits.tolist(), network.lengths.round(1).tolist(), strict=True)) == {
        *((11.0, 179.2), (11.0, 64.6), (20.0, 185.6), (20.0, 67.8))
    }
    phases = ("GGgrrrGGgrrr", "rrrGrGrrrGrG", "rrrGGrrrrGGr", "rrrGGGrrrrrr", "rrrrrrrrrGGG")
    assert network.states == 25 * (phases,)
    links = [(network.lanes[a], network.lanes[b]) for a, b in (network.links[6][link] for link in range(12))]
    north, east, south, west = "nt12", "nt8", "nt2", "nt6"
    expected = [(f"{north}_nt7_0", f"nt7_{to}") for to in (f"{west}_0", f"{south}_0", f"{east}_1")]
    expected += [(f"{east}_nt7_{lane}", f"nt7_{to}_0") for lane, to in ((0, north), (0, west), (1, south))]
    expected += [(f"{south}_nt7_0", f"nt7_{to}") for to in (f"{east}_0", f"{north}_0", f"{west}_1")]
    expected += [(f"{west}_nt7_{lane}", f"nt7_{to}_0") for lane, to in ((0, south), (0, east), (1, north))]
    assert links == expected
    near = [{other for other in range(25) if abs(i % 5 - other % 5) + abs(i // 5 - other // 5) <= 1} for i in range(25)]
    hood = system.topology.neighbourhood(1)
    assert [set(row[mask].tolist()) for row, mask in zip(hood.index, hood.mask, strict=True)] == near


def by_link(episode: Episode) -> float:
    """Mean queue per controlled link, which counts some lanes two or three times, as the literature does."""
    network = khop.make("traffic-grid").network
    lanes = [before for light in network.links for before, _ in light.values()]
    assert len(lanes) == 300
    return float(np.asarray(episode.info["halting"])[:, lanes].mean())


@pytest.mark.parametrize(
    ("name", "arrived", "queue", "episodes", "tolerance"),
    # One episode each of another implementation of the same description on SUMO 1.28. How many vehicles arrive in one
    # episode varies by a sixth from seed to seed.
    [("fixed-cycle", 2040, 4.42, 4, 0.1), ("random", 1439, 4.61, 2, 0.2)],
)
def test_the_grid_behaves_as_another_implementation_of_it(
    name: str, arrived: float, queue: float, episodes: int, tolerance: float
) -> None:
    system = khop.make("traffic-grid")
    chosen = controller(system, name)
    played = play(system, Driven(chosen), chosen.initial(), episode_keys(0, episodes), 2).episode
    each = [jax.tree.map(lambda leaf, k=k: leaf[:, k], played) for k in range(episodes)]
    found = [float(episode.info["network"][-1, NETWORK.index("arrived")]) for episode in each]
    assert np.mean(found) == pytest.approx(arrived, rel=tolerance)
    assert np.mean([by_link(episode) for episode in each]) == pytest.approx(queue, rel=tolerance)


def test_the_reference_observation_counts_links() -> None:
    """Twelve numbers, of which six differ: an avenue's lane has three links, a street's first lane two."""
    system = khop.make("traffic-grid", reference_observation=True, duration=120)
    assert system.spec.d == 12
    dice = controller(system, "random")
    episode = play(system, Driven(dice), dice.initial(), episode_keys(0, 1), 1).episode
    obs = np.asarray(episode.obs)[:, 0]
    assert obs.max() > 0
    assert obs.max() <= 2
    for same in ((0, 1, 2), (3, 4), (6, 7, 8), (9, 10)):
        for link in same[1:]:
            np.testing.assert_array_equal(obs[..., link], obs[..., same[0]])
    assert np.any(obs[..., 4] != obs[..., 5])


# Classical control


def test_a_fixed_cycle_gives_every_phase_30_seconds() -> None:
    cycle = khop.make("traffic-grid").baseline("fixed-cycle")
    assert isinstance(cycle, FixedCycle)
    carry, actions = cycle.initial(), []
    for _ in range(32):
        carry, action = cycle(jax.random.key(0), carry, {}, jnp.zeros((25, 1)))
        actions.append(int(action[0]))
    assert actions == [phase for phase in (0, 1, 2, 3, 4, 0) for _ in range(6)][:32]


@pytest.mark.parametrize(
    ("name", "counts", "phase"),
    [
        ("longest-queue", {"BA_0": 3, "anA_0": 4}, 1),
        ("longest-queue", {"BA_0": 3, "anA_0": 4, "wA_1": 2}, 0),
        ("max-pressure", {"BA_0": 3, "anA_0": 4, "wA_1": 2}, 0),
        ("max-pressure", {"wA_1": 4, "anA_0": 3}, 0),
        ("max-pressure", {"wA_1": 4, "anA_0": 3, "AB_0": 9, "AB_1": 9}, 1),  # the road to B is full
    ],
)
def test_greedy_controllers_choose_the_heaviest_phase(name: str, counts: dict[str, float], phase: int) -> None:
    """Light A: phase 0 serves east and west, phase 1 north and south."""
    system = khop.make("traffic-net", net=f"{ROADS}/two.net.xml", routes=f"{ROADS}/two.rou.xml")
    network = system.network
    lanes = jnp.array([counts.get(lane, 0.0) for lane in network.lanes])
    state = {"vehicles": lanes, "halting": lanes[: network.observed]}
    chosen = system.baseline(name)
    assert isinstance(chosen, Greedy)
    _, action = chosen(jax.random.key(0), (), state, jnp.zeros((2, 1)))
    assert action[0] == phase


# City


def comparable(file: Path) -> list[str]:
    """Lines without dates, and without the folder that the file was built in."""
    return [line for line in file.read_text().splitlines() if "generated" not in line and "value=" not in line]


def test_a_city_is_irregular_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for cache in ("one", "two"):
        monkeypatch.setenv("KHOP_CACHE", str(tmp_path / cache))
        city.files.cache_clear()
        system = khop.make("traffic-city", lights=20, vehicles=300)
        texts += [comparable(file) for file in (system.plan.net, *system.plan.routes)]
    assert texts[0] == texts[2]
    assert texts[1] == texts[3]
    network = system.network
    assert len(network.lights) + len(network.left_alone) == 20
    assert len(network.lights) >= 19
    assert len({len(links) for links in network.links}) > 3
    assert {len(states) for states in network.states} >= {2, 3}
    assert system.topology.statistics()["components"] == 1
    assert sum('<vehicle id="' in line for line in texts[1]) > 270
    other = khop.make("traffic-city", lights=20, vehicles=300, city_seed=1)
    assert other.network.links != network.links


# RESCO


def test_resco_is_read_from_the_users_copy(tmp_path: Path) -> None:
    folder = tmp_path / "nets" / "RESCO" / "cologne8"
    folder.mkdir(parents=True)
    for name in ("net", "rou"):
        shutil.copy(ROADS / f"two.{name}.xml", folder / f"cologne8.{name}.xml")
    (folder / "cologne8.sumocfg").write_text(
        '<configuration><input><net-file value="cologne8.net.xml"/><route-files value="cologne8.rou.xml"/></input>'
        '<time><begin value="25200"/><end value="28800"/></time></configuration>'
    )
    system = khop.make("traffic-resco", resco_path=str(tmp_path))
    assert system.spec.n == 2
    assert system.plan.begin == 25200
    assert system.spec.horizon == 360
    assert read(folder / "cologne8.net.xml").lights == ("A", "B")
    with pytest.raises(InputError, match=r"cologne3/cologne3\.sumocfg"):
        _ = khop.make("traffic-resco", scenario="cologne3", resco_path=str(tmp_path)).spec
    with pytest.raises(InputError, match="did you mean 'cologne8'"):
        _ = khop.make("traffic-resco", scenario="colonge8").spec


def test_a_missing_copy_of_resco_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sumo_rl" else find(name))
    with pytest.raises(InputError, match=r"install sumo-rl .* or give the folder"):
        _ = khop.make("traffic-resco").spec
