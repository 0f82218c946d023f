"""Microgrids against SciPy's stiff integrator, conservation of power and what is known of droop control."""

import equinox as eqx
import jax
import jax.numpy as jnp
import microgrid_ode
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from khop.systems.microgrid.dynamics import Electrical, advance, at_rest, inverse, signed_sum, terminal_voltage
from khop.systems.microgrid.network import Network, network

VARIANTS = [(6, False), (20, False), (20, True), (40, False)]
PRIMARY, INTERVAL = 0.4, 0.05  # s

fast = eqx.filter_jit(advance)


def windows(grid: Network, steps: int) -> list[tuple[np.ndarray, np.ndarray, bool, float]]:
    """Set-points, loads, frequency control and duration: a start and some control steps, each a jump of everything."""
    rng = np.random.default_rng(0)
    load = rng.uniform(0.8, 1.2, (2, grid.loads))
    found = [(np.full(grid.n, 480.0), load, False, PRIMARY)]
    for step in range(steps):
        load = load + rng.uniform(-0.05, 0.05, load.shape)
        found.append((rng.uniform(490, 540, grid.n), load, step > 0, INTERVAL))
    return found


def integrate(grid: Network, parts: list, finer: int = 1) -> list[Electrical]:
    states = [at_rest(grid)]
    for set_point, load, controlled, seconds in parts:
        substeps = finer * (80 if seconds == PRIMARY else 50)
        states.append(fast(grid, states[-1], *map(jnp.asarray, (set_point, load, controlled)), seconds, substeps))
    return states[1:]


@pytest.mark.parametrize(("inverters", "as_published"), VARIANTS)
def test_voltages_are_those_of_scipys_stiff_integrator(inverters: int, as_published: bool) -> None:
    """In float32, with the substeps that the systems use: terminal voltages to 1e-4 pu, those of buses to 1e-3 pu."""
    grid = network(inverters, as_published)
    parts = windows(grid, 3)
    n, m = grid.n, len(grid.resistance)
    x = microgrid_ode.at_rest(grid)
    for (set_point, load, controlled, seconds), state in zip(parts, integrate(grid, parts), strict=True):
        rates = microgrid_ode.rates(grid, set_point, load, controlled)
        found = solve_ivp(rates, (0, seconds), x, method="Radau", rtol=1e-7, atol=1e-6, t_eval=[seconds])
        assert found.success
        x = found.y[:, -1]
        angle, active, reactive, frequency = x[: 4 * n].reshape(4, n)
        current = x[4 * n : 4 * n + m] + 1j * x[4 * n + m :]
        assert state.reactive.dtype == jnp.float32
        voltage = terminal_voltage(grid, jnp.asarray(set_point), state.reactive)
        np.testing.assert_allclose(voltage, set_point - grid.reactive_droop * reactive, atol=1e-4 * 480)
        np.testing.assert_allclose(state.bus_voltage, 1e4 * (grid.balance @ current), atol=1e-3 * 480)
        np.testing.assert_allclose(state.angle, angle, atol=1e-3)
        np.testing.assert_allclose(state.active, active, atol=150)
        np.testing.assert_allclose(state.frequency, frequency, atol=1e-3)
        np.testing.assert_allclose(state.current, current, atol=2)


def test_the_integrator_is_of_second_order() -> None:
    """Halving the steps quarters the error, in float64."""
    with jax.enable_x64(True):
        grid = network.__wrapped__(6, False)  # its own arrays: JAX remembers the float32 versions of constants
        parts = windows(grid, 2)
        coarse, fine, finest = (integrate(grid, parts, finer)[-1] for finer in (1, 2, 8))
        assert finest.reactive.dtype == jnp.float64
        for name in ("angle", "active", "reactive", "frequency", "current"):
            first, second = (np.max(abs(getattr(state, name) - getattr(finest, name))) for state in (coarse, fine))
            assert 3.4 < first / second < 4.8, name


@pytest.mark.parametrize("inverters", [6, 20])
def test_what_settled_droop_control_obeys(inverters: int) -> None:
    """Power is conserved, the frequency is back at its nominal value and active power is shared as the droops say."""
    grid = network(inverters, False)
    load = jnp.ones((2, grid.loads))
    set_point = jnp.full(inverters, 515.0)
    state = at_rest(grid)
    state = fast(grid, state, set_point, load, jnp.asarray(False), PRIMARY, 400)
    state = fast(grid, state, set_point, load, jnp.asarray(True), 3.0, 3000)
    resistance = grid.resistance + np.pad(grid.service_resistance, (len(grid.resistance) - grid.loads, 0))
    inductance = grid.inductance + np.pad(grid.service_inductance, (len(grid.resistance) - grid.loads, 0))
    flow = np.abs(state.current) ** 2
    assert state.active.sum() == pytest.approx((resistance * flow).sum(), rel=1e-3)
    assert state.reactive.sum() == pytest.approx((120 * np.pi * inductance * flow).sum(), rel=1e-3)
    deviation = state.frequency - grid.active_droop * state.active
    np.testing.assert_allclose(deviation, 0, atol=2e-3)
    np.testing.assert_allclose(grid.active_droop * state.active, (grid.active_droop * state.active).mean(), rtol=2e-3)


@pytest.mark.parametrize(("inverters", "low", "high"), [(6, 0.903, 0.916), (20, 0.918, 1.008)])
def test_primary_control_leaves_the_published_voltages(inverters: int, low: float, high: float) -> None:
    """As the published environment starts, its slips included."""
    grid = network(inverters, True)
    ((set_point, *_),) = start = windows(grid, 0)
    (state,) = integrate(grid, start)
    voltage = terminal_voltage(grid, jnp.asarray(set_point), state.reactive) / 480
    assert voltage.min() == pytest.approx(low, abs=0.001)
    assert voltage.max() == pytest.approx(high, abs=0.001)


def test_networks_have_the_published_sizes() -> None:
    for inverters, buses, lines, loads in ((6, 11, 10, 4), (20, 20, 20, 10), (40, 40, 42, 20)):
        grid = network(inverters, False)
        assert grid.incidence.shape == (buses, inverters + lines + loads)
        assert grid.loads == loads
        np.testing.assert_array_equal(abs(grid.incidence).sum(0)[inverters:-loads], 2)
        np.testing.assert_array_equal(grid.incidence.sum(0), [1] * inverters + [0] * lines + [-1] * loads)
        np.testing.assert_array_equal(grid.consensus, grid.consensus.T)
    np.testing.assert_array_equal(network(6, False).inverter_bus, [0, 2, 10, 4, 9, 6])


def test_the_published_slips_are_where_they_should_be() -> None:
    """Bus 5 feeds load 4 in place of load 5, and with 20 inverters bus 10 line 10 in place of line 11."""
    published, correct = network(20, True), network(20, False)
    slips = {(int(bus) + 1, int(branch) - 20 + 1) for bus, branch in np.argwhere(published.balance != correct.balance)}
    assert slips == {(5, 20 + 4), (5, 20 + 5), (10, 10), (10, 11)}
    assert np.count_nonzero(network(40, True).balance != network(40, False).balance) == 4
    np.testing.assert_array_equal(network(6, True).balance, network(6, True).incidence)


def test_the_inverse_inverts() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(12, 12)) + 1j * rng.normal(size=(12, 12)) + 8 * np.eye(12)
    np.testing.assert_allclose(inverse(jnp.asarray(matrix)), np.linalg.inv(matrix), atol=1e-6)


def test_signed_sums_are_matrix_products() -> None:
    signs = np.random.default_rng(2).choice([-1.0, 0, 1], (5, 9), p=[0.2, 0.6, 0.2])
    x = np.arange(9) + 1j
    np.testing.assert_allclose(signed_sum(signs, jnp.asarray(x)), signs @ x, rtol=1e-6)
