"""What is read from networks."""

from pathlib import Path

import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.systems.traffic import sumo
from khop.systems.traffic.network import read, topology

ROADS = Path(__file__).parents[2] / "data" / "roads"
NET, ROUTES = ROADS / "two.net.xml", ROADS / "two.rou.xml"


def changed(tmp_path: Path, file: Path, *changes: tuple[str, str]) -> str:
    """A copy of a file with some of its text replaced."""
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    copy = tmp_path / file.name
    copy.write_text(text)
    return str(copy)


def test_lights_phases_and_lanes() -> None:
    network = read(NET)
    assert network.lights == ("A", "B")
    assert network.states == (("rrrGGgrrrGGGg", "GGgrrrGGgrrrr"), ("rrGGGGg", "GGGrrrr"))
    lanes = [[network.lanes[k] for k in row if k >= 0] for row in network.incoming]
    assert [sorted(row) for row in lanes] == [
        ["BA_0", "anA_0", "asA_0", "wA_0", "wA_1"],
        ["AB_0", "AB_1", "bnB_0", "eB_0"],
    ]
    assert network.observed == 9
    assert len(network.lanes) == 9 + 6  # and those that lead out of the network
    limits = dict(zip(network.lanes, network.limits, strict=True))
    assert (limits["wA_0"], limits["anA_0"]) == (14, 10)
    assert network.entries == {"anA": 0, "BA": 0, "asA": 0, "wA": 0, "bnB": 1, "eB": 1, "AB": 1}
    np.testing.assert_allclose(np.diff(network.positions, axis=0), [[200, 0]])


def test_links_share_their_lane() -> None:
    """Light A: anA has three links on its lane, all green in the second phase; wA_0 and wA_1 have four between them."""
    network = read(NET)
    capacity = network.capacity()[0].sum(-1)
    before = network.link_lanes(0)[0]
    assert [network.lanes[k] for k in before[:3]] == 3 * ["anA_0"]
    np.testing.assert_allclose(capacity, [3, 2])  # BA, wA_0, wA_1; anA, asA
    assert [network.lanes[k] for k in network.link_lanes(1)[1][:7]].count("BA_0") == 2


def test_neighbours_are_joined_by_roads() -> None:
    network = read(NET)
    assert sorted(map(tuple, network.roads)) == [(0, 1), (1, 0)]
    assert topology(network, directed=False).statistics()["edges"] == 1


def test_a_one_way_road_carries_one_way(tmp_path: Path) -> None:
    """Two lights and a street without light in between, that goes from the first to the second only."""
    nodes = "".join(
        f'<node id="{name}" x="{x}" y="{y}" type="{kind}"/>'
        for name, x, y, kind in [
            *(("A", 0, 0, "traffic_light"), ("m", 150, 0, "priority"), ("B", 300, 0, "traffic_light")),
            *(("w", -99, 0, ""), ("e", 399, 0, ""), ("a", 0, 99, ""), ("b", 300, 99, "")),
        ]
    )
    ends = ("wA", "Am", "mB", "Be", "aA", "bB")
    edges = "".join(f'<edge id="{a}{b}" from="{a}" to="{b}" numLanes="1" speed="10"/>' for a, b in ends)
    (tmp_path / "n.xml").write_text(f"<nodes>{nodes}</nodes>".replace(' type=""', ""))
    (tmp_path / "e.xml").write_text(f"<edges>{edges}</edges>")
    net = tmp_path / "way.net.xml"
    sumo.run("netconvert", "-n", tmp_path / "n.xml", "-e", tmp_path / "e.xml", "-o", net, "--no-warnings", "true")
    network = read(net)
    assert network.roads.tolist() == [[0, 1]]
    one_way = topology(network, directed=True).neighbourhood(1)
    np.testing.assert_array_equal(one_way.mask.sum(1), [1, 2])  # B hears A, not the other way round
    np.testing.assert_array_equal(topology(network, directed=False).neighbourhood(1).mask.sum(1), [2, 2])


def test_a_light_with_one_phase_is_left_alone(tmp_path: Path) -> None:
    net = changed(tmp_path, NET, ("GGGrrrr", "rrGGGGg"), ("yyGrrrr", "rrGyyyy"))
    network = read(Path(net))
    assert network.lights == ("A",)
    assert network.left_alone == ("B",)


@pytest.mark.parametrize(
    ("net", "routes", "complaint"),
    [
        ([("GGGrrrr", "rrrrrrr"), ("rrGGGGg", "rryyyyy"), ("rrGyyyy", "rryyyyy"), ("yyGrrrr", "rryyyyy")], [],
         "light 'B' has no green phase"),
        ([("GGGrrrr", "rrGGGGg"), ("GGgrrrGGgrrrr", "rrrGGgrrrGGGg")], [], "None of the 2 lights"),
        ([("<junction", "<junktion")], [], "SUMO's program sumo failed"),
        ([("</net>", "")], [], "SUMO's program sumo failed"),
        ([], [('from="eB"', 'from="nowhere"')], "nowhere"),
        ([], [("</routes>", "")], "SUMO's program sumo failed"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused_in_one_sentence(
    tmp_path: Path, net: list, routes: list, complaint: str
) -> None:
    files = {"net": changed(tmp_path, NET, *net), "routes": changed(tmp_path, ROUTES, *routes)}
    with pytest.raises(InputError, match=complaint) as error:
        khop.train(khop.make("traffic-net", **files), "dppo", out=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    assert not (tmp_path / "run").exists()


def test_a_network_without_lights_is_refused(tmp_path: Path) -> None:
    net = tmp_path / "dark.net.xml"
    sumo.run("netgenerate", "--grid", "--grid.number", "2", "--output-file", net, "--no-warnings", "true")
    with pytest.raises(InputError, match=r"dark\.net\.xml has no traffic light"):
        read(net)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, "wants a network and its demand"),
        ({"net": "no.net.xml", "routes": str(ROUTES)}, "There is no network file"),
        ({"net": str(NET), "routes": "no.rou.xml"}, "There is no file .*no.rou.xml"),
        ({"sumocfg": "no.sumocfg"}, "no SUMO configuration"),
        ({"net": str(NET), "routes": str(ROUTES), "duration": 5}, "at least one interval of 10 s"),
    ],
)
def test_missing_files_are_named(parameters: dict, complaint: str) -> None:
    system = khop.make("traffic-net", **parameters)
    with pytest.raises(InputError, match=complaint):
        _ = system.spec


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"reward": "speed"}, "delay, queue or pressure"),
        ({"interval": 5, "yellow": 4, "all_red": 1}, "choose at least 6 s"),
        ({"min_green": -1}, "min_green must be at least 0"),
        ({"timeout": 0.0}, "timeout must be above 0"),
    ],
)
def test_impossible_parameters_are_refused(parameters: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        khop.make("traffic-net", **parameters)


def test_a_missing_sumo_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libsumo" else find(name))
    with pytest.raises(InputError, match=r"libsumo is missing: install it with pip install 'khop\[traffic\]'\."):
        sumo.module("sumolib")


def test_a_configuration_gives_network_demand_and_time(tmp_path: Path) -> None:
    file = tmp_path / "two.sumocfg"
    values = {"net-file": NET, "route-files": ROUTES, "begin": 60, "end": 180, "summary-output": "s.xml"}
    lines = [f'<{name} value="{value}"/>' for name, value in values.items()]
    file.write_text(f"<configuration>{''.join(lines)}</configuration>")
    system = khop.make("traffic-net", sumocfg=str(file))
    assert system.plan.begin == 60
    assert system.spec.horizon == 12
    assert not any("summary" in word for word in system.engine.options["command"])
    assert khop.make("traffic-net", sumocfg=str(file), begin=0, duration=60).plan[3:] == (0, 60)
