"""Power flow against pandapower, Newton's method and Kirchhoff's laws.

``benchmarks/power_flow_speed.py`` compares every built-in grid with pandapower itself, which takes a minute.
"""

import copy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandapower
import pandapower.networks
import pytest
from scipy import sparse
from scipy.sparse import linalg

from khop.systems.distribution_grid.builtin import grid_and_profiles
from khop.systems.distribution_grid.case33 import TABLE, case33
from khop.systems.distribution_grid.grid import Grid
from khop.systems.distribution_grid.pandapower_grid import as_grid
from khop.systems.distribution_grid.power_flow import PowerFlow, Solution

SCENARIOS = 200
QUIET = {"numba": False, "lightsim2grid": False, "tolerance_mva": 1e-9, "calculate_voltage_angles": True}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", params=[33, 141, 322, 421])
def grid(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A built-in grid, random injections at its loads and inverters, and the voltages that Newton's method finds."""
    grid, profiles = grid_and_profiles(request.param)
    random = np.random.default_rng(request.param)
    buses = np.union1d(profiles.load_bus, grid.inverter_bus)
    active, reactive = np.zeros((2, SCENARIOS, len(buses)))
    rows = random.integers(len(profiles.active), size=SCENARIOS)
    at = np.searchsorted(buses, profiles.load_bus)
    active[:, at] -= profiles.active[rows] @ profiles.load_active
    reactive[:, at] -= profiles.reactive[rows] @ profiles.load_reactive
    sun = random.uniform(0, 0.8, (SCENARIOS, 1)) * random.uniform(0.7, 1, (SCENARIOS, grid.inverters))
    at = np.searchsorted(buses, grid.inverter_bus)
    np.add.at(active, (slice(None), at), sun * grid.inverter_peak)
    np.add.at(reactive, (slice(None), at), random.uniform(-0.6, 0.6, sun.shape) * grid.inverter_peak)
    flow = PowerFlow(grid, buses)
    voltages = np.stack([newton(flow, p, q) for p, q in zip(active, reactive, strict=True)])
    return SimpleNamespace(flow=flow, active=active, reactive=reactive, voltages=voltages)


def newton(flow: PowerFlow, active: np.ndarray, reactive: np.ndarray) -> np.ndarray:
    """Voltages by Newton–Raphson in polar coordinates (Zimmerman, MATPOWER Technical Note 2), from no injections."""
    power = np.zeros(flow.grid.buses, complex)
    power[flow.injecting] = (active + 1j * reactive) / flow.grid.base
    admittance, voltage = sparse.csr_array(flow.grid.admittance), flow.idle.copy()
    for _ in range(20):
        current = admittance @ voltage
        mismatch = (voltage * current.conj() - power)[1:]
        direction = voltage / abs(voltage)
        by_size = sparse.diags_array(voltage) @ (admittance @ sparse.diags_array(direction)).conj()
        by_size = by_size + sparse.diags_array(current.conj() * direction)
        by_angle = sparse.diags_array(current) - admittance @ sparse.diags_array(voltage)
        by_angle = 1j * sparse.diags_array(voltage) @ by_angle.conj()
        blocks = [matrix[1:, 1:] for matrix in (sparse.csr_array(by_angle), sparse.csr_array(by_size))]
        jacobian = sparse.block_array(
            [[block.real for block in blocks], [block.imag for block in blocks]], format="csc"
        )
        change = linalg.spsolve(jacobian, -np.concatenate([mismatch.real, mismatch.imag]))
        angle, size = np.angle(voltage), abs(voltage)
        angle[1:] += change[: len(angle) - 1]
        size[1:] += change[len(angle) - 1 :]
        voltage = size * np.exp(1j * angle)
        if np.max(abs(change)) < 1e-10:
            return voltage
    raise AssertionError("Newton did not converge")


def solved(grid: SimpleNamespace, dtype: type) -> Solution:
    flow = grid.flow
    return jax.jit(flow.solve)(jnp.asarray(grid.active, dtype), jnp.asarray(grid.reactive, dtype))


@pytest.mark.usefixtures("x64")
def test_voltages_are_those_of_newton_in_float64(grid: SimpleNamespace) -> None:
    solution = solved(grid, np.float64)
    assert np.all(solution.converged)
    np.testing.assert_allclose(solution.real + 1j * solution.imag, grid.voltages, rtol=0, atol=1e-6)


def test_voltages_are_those_of_newton_in_float32(grid: SimpleNamespace) -> None:
    solution = solved(grid, np.float32)
    assert np.all(solution.converged)
    np.testing.assert_allclose(solution.magnitude, abs(grid.voltages), rtol=0, atol=5e-6)


@pytest.mark.usefixtures("x64")
def test_the_scenarios_are_hard(grid: SimpleNamespace) -> None:
    """So that agreeing on them means something: voltages leave the band on both sides, yet stay possible."""
    magnitude = abs(grid.voltages)
    assert magnitude.min() < 0.95
    assert magnitude.max() > 1.05


@pytest.mark.usefixtures("x64")
def test_kirchhoffs_current_law_holds_at_every_bus(grid: SimpleNamespace) -> None:
    solution = solved(grid, np.float64)
    voltage = np.asarray(solution.real + 1j * solution.imag)
    power = grid.flow.grid.base * voltage * np.conj(voltage @ grid.flow.grid.admittance.T)
    expected = np.zeros_like(power)
    expected[:, grid.flow.injecting] = grid.active + 1j * grid.reactive
    np.testing.assert_allclose(power[:, 1:], expected[:, 1:], rtol=0, atol=2e-5)  # MVA; impedances down to 6e-7 pu


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_losses_are_what_is_fed_in_and_does_not_come_out(grid: SimpleNamespace, precision: str) -> None:
    """Energy balance with Newton's voltages, in float64: slack and injections minus what stays in the grid."""
    voltage, admittance = grid.voltages, grid.flow.grid.admittance
    balance = grid.flow.grid.base * (voltage * np.conj(voltage @ admittance.T)).sum(1).real
    with jax.enable_x64(precision == "float64"):
        losses = np.asarray(jax.jit(grid.flow.losses)(solved(grid, np.dtype(precision).type)))
    np.testing.assert_allclose(losses.sum(1), balance, rtol=1e-4)


# pandapower's own models ----------------------------------------------------------------------------------------------


def meshed_net() -> pandapower.pandapowerNet:
    """Three voltages, a loop, a tap, a phase shift, line charging, iron losses, a shunt and a closed switch."""
    net = pandapower.create_empty_network(sn_mva=2.0)
    top, a, b, c, d, e, f = (
        pandapower.create_bus(net, kv, zone=zone)
        for kv, zone in zip(
            (110, 20, 20, 20, 20, 0.4, 0.4), ("main", "main", "north", "south", "south", "south", "south"), strict=True
        )
    )
    pandapower.create_ext_grid(net, top, vm_pu=1.02)
    pandapower.create_transformer(net, top, a, "25 MVA 110/20 kV", tap_pos=-3)
    pandapower.create_transformer(net, d, e, "0.63 MVA 20/0.4 kV", tap_pos=1)
    for start, end, length in ((a, b, 3), (b, c, 4), (c, d, 2), (d, a, 5)):
        pandapower.create_line(net, start, end, length, "NA2XS2Y 1x95 RM/25 12/20 kV")
    pandapower.create_switch(net, e, f, "b", closed=True)
    pandapower.create_shunt(net, c, q_mvar=-0.8, p_mw=0.01)
    for bus, load in ((b, 2.0), (c, 1.5), (f, 0.2)):
        pandapower.create_load(net, bus, load, load / 3)
    for bus, power in ((b, 1.0), (f, 0.15)):
        pandapower.create_sgen(net, bus, power, 0.1, max_p_mw=power)
    return net


@pytest.mark.usefixtures("x64")
def test_a_net_with_all_that_is_understood_is_solved_as_pandapower_does() -> None:
    net = meshed_net()
    grid, rows = as_grid(net)
    flow = PowerFlow(grid, np.arange(1, grid.buses))
    random = np.random.default_rng(0)
    for _ in range(5):
        net.load["p_mw"] = random.uniform(0.1, 2, len(net.load)) * [1, 1, 0.1]
        net.sgen["q_mvar"] = random.uniform(-0.3, 0.3, len(net.sgen)) * [1, 0.3]
        pandapower.runpp(net, **QUIET)
        injection = np.zeros(grid.buses, complex)
        np.add.at(injection, rows[net.load.bus], -(net.load.p_mw + 1j * net.load.q_mvar))
        np.add.at(injection, grid.inverter_bus, net.sgen.p_mw + 1j * net.sgen.q_mvar)
        solution = flow.solve(jnp.asarray(injection.real[1:]), jnp.asarray(injection.imag[1:]))
        assert solution.converged
        expected = net.res_bus.vm_pu * np.exp(1j * np.radians(net.res_bus.va_degree))
        np.testing.assert_allclose((solution.real + 1j * solution.imag)[rows], expected, rtol=0, atol=1e-7)
        losses = np.asarray(flow.losses(solution))
        np.testing.assert_allclose(losses[grid.is_line].sum(), net.res_line.pl_mw.sum(), rtol=1e-4)
        np.testing.assert_allclose(losses[~grid.is_line], net.res_trafo.pl_mw, rtol=1e-4)


def test_the_33_bus_feeder_is_pandapowers() -> None:
    net = pandapower.networks.case33bw()
    net.line = net.line[net.line.in_service]
    ours = case33(1.0)
    theirs = as_grid(with_inverters(net, ours))[0]
    np.testing.assert_allclose(ours.admittance, theirs.admittance, rtol=1e-9)
    np.testing.assert_array_equal(TABLE[:, 1], net.load.bus)
    np.testing.assert_allclose(TABLE[:, 4:] / 1000, net.load[["p_mw", "q_mvar"]])


def with_inverters(net: pandapower.pandapowerNet, grid: Grid) -> pandapower.pandapowerNet:
    net = copy.deepcopy(net)
    net.bus["zone"] = "main"
    for bus in grid.inverter_bus:
        pandapower.create_sgen(net, bus, 0.0)
    return net


# Failure and derivatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [20.0, 1e3, 1e6])  # MW; the feeder cannot carry more than about 13
def test_what_no_grid_can_carry_is_reported(load: float) -> None:
    flow = PowerFlow(case33(1.0), np.arange(1, 33))
    share = jnp.asarray(TABLE[:, 4] / TABLE[:, 4].sum(), jnp.float32)
    assert not flow.solve(-load * share, 0 * share).converged
    assert flow.solve(-3.7 * share, 0 * share).converged


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_finite_differences() -> None:
    flow = PowerFlow(case33(1.0), np.arange(1, 33))
    random = np.random.default_rng(1)
    active, reactive, direction = (jnp.asarray(random.uniform(-0.1, 0.1, 32)) for _ in range(3))

    @jax.jit
    def loss(reactive: jax.Array) -> jax.Array:
        solution = flow.solve(active, reactive)
        return flow.losses(solution).sum() + jnp.sum((solution.magnitude - 1) ** 2)

    step = 1e-4
    slope = (loss(reactive + step * direction) - loss(reactive - step * direction)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(reactive) @ direction, slope, rtol=1e-5)
