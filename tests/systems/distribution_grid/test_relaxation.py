"""The relaxation of optimal power flow: a bound that no reactive power passes, and that one reaches."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.systems.distribution_grid.plant import Plant
from khop.systems.distribution_grid.voltage_control import VoltageControl

pytest.importorskip("cvxpy", reason="needs the extra opf")
from khop.systems.distribution_grid.relaxation import relaxed_optimum

MIDSUMMER_NOON = 172 * 480 + 240  # step of the year
SYSTEM = khop.make("grid-33", noise=0.0)
assert isinstance(SYSTEM, VoltageControl)


def moment(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads and sun."""
    active, reactive, sun = SYSTEM.plant.data[1].at(jnp.int32(step))
    return np.stack([active, reactive], 1), np.asarray(sun)


def outcomes(load: np.ndarray, sun: np.ndarray, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest deviation from 1 pu and losses of many choices of the inverters' fractions."""
    plant = SYSTEM.plant

    @jax.jit
    def outcome(fractions: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = plant.solve(jnp.asarray(load), jnp.asarray(sun), fractions * plant.capability(jnp.asarray(sun)))
        return abs(solution.magnitude - 1).max(-1), plant.flow.losses(solution).sum(-1)

    found = jax.lax.map(outcome, jnp.asarray(fractions, jnp.float32), batch_size=1024)
    return np.asarray(found[0]), np.asarray(found[1])


AFTERNOON, WINTER_EVENING = MIDSUMMER_NOON + 120, 20 * 480 + 380


@pytest.mark.parametrize("step", [MIDSUMMER_NOON, AFTERNOON, WINTER_EVENING])
def test_no_choice_of_the_inverters_loses_less(step: int) -> None:
    load, sun = moment(step)
    found = relaxed_optimum(SYSTEM.plant, load, sun, SYSTEM.limit)
    capability = np.asarray(SYSTEM.plant.capability(jnp.asarray(sun)))
    rng = np.random.default_rng(0)
    around = found.reactive / capability + rng.normal(0, 0.1, (5_000, len(sun)))  # near noon hardly any choice will do
    anywhere = rng.uniform(-SYSTEM.limit, SYSTEM.limit, (20_000, len(sun)))
    drawn = np.clip(np.concatenate([around, anywhere]), -SYSTEM.limit, SYSTEM.limit)
    off, loss = outcomes(load, sun, drawn)
    assert np.any(off <= 0.05)
    assert np.all(loss[off <= 0.05] >= found.bound * (1 - 1e-4))


@pytest.mark.parametrize("step", [AFTERNOON, WINTER_EVENING])
def test_where_the_relaxation_is_exact_its_choice_keeps_the_band_and_loses_no_more(step: int) -> None:
    load, sun = moment(step)
    found = relaxed_optimum(SYSTEM.plant, load, sun, SYSTEM.limit)
    capability = np.asarray(SYSTEM.plant.capability(jnp.asarray(sun)))
    assert abs(found.voltages - 1).max() <= 0.05 + 1e-4
    np.testing.assert_allclose(found.losses, found.bound, rtol=1e-4)
    own_off, own_loss = outcomes(load, sun, (found.reactive / capability)[None])
    np.testing.assert_allclose(own_loss, found.losses, rtol=1e-4)
    np.testing.assert_allclose(own_off, abs(found.voltages - 1).max(), atol=1e-5)
    assert found.gap < 1e-5


def test_a_band_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(InputError, match=r"No reactive power within the inverters' limit keeps .* 1\.2 and 1\.3 pu"):
        relaxed_optimum(SYSTEM.plant, *moment(MIDSUMMER_NOON), SYSTEM.limit, band=(1.2, 1.3))


def test_where_the_relaxation_is_not_exact_it_is_seen() -> None:
    """Idle inverters cannot keep the band at noon; losses that no grid has could, and the power flow tells."""
    found = relaxed_optimum(SYSTEM.plant, *moment(MIDSUMMER_NOON), limit=0.01)
    assert found.gap > 1e-3
    assert found.voltages.max() > 1.06


def test_a_grid_with_loops_is_refused() -> None:
    grid, profiles = SYSTEM.plant.data
    again = {
        name: np.append(getattr(grid, name), getattr(grid, name)[-1:])
        for name in ("from_bus", "to_bus", "impedance", "shunt_from", "shunt_to", "ratio", "is_line")
    }
    plant = Plant((dataclasses.replace(grid, **again), profiles), SYSTEM.plant.agents)
    with pytest.raises(InputError, match="radial"):
        relaxed_optimum(plant, *moment(0), SYSTEM.limit)


def test_without_cvxpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(InputError, match=r"khop\[opf\]"):
        relaxed_optimum(SYSTEM.plant, *moment(0), SYSTEM.limit)
