"""How fast are microgrids, beside SciPy's stiff integrators on the same equations, and how accurate are both?

The published environment integrates with ``odeint`` (LSODA) at tolerances 1e-11 and 1e-10. Here it does so on NumPy
equations, over the same random set-points and loads, at those tolerances and at the loosest ones that keep terminal
voltages to 1e-4 pu; Radau, which suits these equations better, likewise. Errors are against Radau at 1e-10.

    .venv/bin/python benchmarks/microgrid_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.integrate import odeint, solve_ivp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "systems"))
import microgrid_ode

from khop.systems.microgrid.dynamics import Electrical, advance, at_rest, terminal_voltage
from khop.systems.microgrid.network import Network, network
from khop.systems.microgrid.system import INTERVAL, PRIMARY, SUBSTEPS

STEPS = 4
ACCURACY = 1e-4  # pu
Part = tuple[np.ndarray, np.ndarray]  # set-points and loads of one step
Integrator = Callable[[microgrid_ode.Rates, np.ndarray], np.ndarray]


def radau(tolerance: float, seconds: float = INTERVAL) -> Integrator:
    def integrate(rates: microgrid_ode.Rates, x: np.ndarray) -> np.ndarray:
        return solve_ivp(rates, (0, seconds), x, "Radau", [seconds], rtol=tolerance, atol=10 * tolerance).y[:, -1]

    return integrate


def lsoda(rtol: float, atol: float) -> Integrator:
    def integrate(rates: microgrid_ode.Rates, x: np.ndarray) -> np.ndarray:
        return odeint(rates, x, [0, INTERVAL], rtol=rtol, atol=atol, mxstep=5000, tfirst=True)[-1]

    return integrate


def steps_of(grid: Network) -> list[Part]:
    """Random set-points, and loads that jump."""
    rng = np.random.default_rng(0)
    return [(rng.uniform(490, 540, grid.n), rng.uniform(0.8, 1.2, (2, grid.loads))) for _ in range(STEPS)]


def play(grid: Network, start: np.ndarray, parts: list[Part], integrate: Integrator) -> tuple[np.ndarray, float]:
    """Terminal voltages in pu after each step, and seconds per step."""
    x, voltages, seconds = start, [], []
    for set_point, load in parts:
        rates = microgrid_ode.rates(grid, set_point, load, True)
        began = time.perf_counter()
        x = integrate(rates, x)
        seconds.append(time.perf_counter() - began)
        voltages.append((set_point - grid.reactive_droop * x[2 * grid.n : 3 * grid.n]) / 480)
    return np.array(voltages), statistics.median(seconds)


def own_accuracy(grid: Network, start: np.ndarray, parts: list[Part]) -> np.ndarray:
    """Terminal voltages by khop, from the same start."""
    n, m = grid.n, len(grid.resistance)
    parameters = [jnp.asarray(values, jnp.float32) for values in start[: 4 * n].reshape(4, n)]
    current = jnp.asarray(start[4 * n : 4 * n + m] + 1j * start[4 * n + m :], jnp.complex64)
    state = Electrical(*parameters, current, at_rest(grid).bus_voltage)
    one = eqx.filter_jit(lambda state, *part: advance(grid, state, *part, True, INTERVAL, SUBSTEPS))
    voltages = []
    for part in parts:
        set_point, load = map(jnp.asarray, part)
        state = one(state, set_point, load)
        voltages.append(terminal_voltage(grid, set_point, state.reactive) / 480)
    return np.array(voltages)


def own_speed(grid: Network, parallel: int, repetitions: int) -> float:
    """Seconds per step of one environment among ``parallel``."""

    @jax.jit
    def one(state: Electrical, set_point: jax.Array, load: jax.Array) -> Electrical:
        return jax.vmap(lambda *moment: advance(grid, *moment, True, INTERVAL, SUBSTEPS))(state, set_point, load)

    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (parallel, *leaf.shape)), at_rest(grid))
    rng = np.random.default_rng(1)
    set_point = jnp.asarray(rng.uniform(490, 540, (parallel, grid.n)))
    load = jnp.asarray(rng.uniform(0.8, 1.2, (parallel, 2, grid.loads)))
    state = jax.block_until_ready(one(state, set_point, load))
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        state = jax.block_until_ready(one(state, set_point, load))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / parallel


def loosest(
    grid: Network, start: np.ndarray, parts: list[Part], exact: np.ndarray, kind: Callable[[float], Integrator]
) -> tuple[str, float, float]:
    """The loosest tolerance that reaches the accuracy, its error and its seconds per step."""
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        voltages, seconds = play(grid, start, parts, kind(tolerance))
        error = float(np.max(abs(voltages - exact)))
        if error <= ACCURACY:
            break
    return f"{tolerance:g}", error, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 inverters alone, few repetitions")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")  # odeint warns of excess work at the published tolerances
    console = Console(width=120)
    for inverters in (6,) if quick else (6, 20, 40):
        grid = network(inverters, False)
        parts = steps_of(grid)
        nothing = np.full(grid.n, 480.0), np.ones((2, grid.loads))
        start = radau(1e-10, PRIMARY)(microgrid_ode.rates(grid, *nothing, False), microgrid_ode.at_rest(grid))
        exact, _ = play(grid, start, parts, radau(1e-10))
        published, published_seconds = play(grid, start, parts, lsoda(1e-11, 1e-10))
        rows = [("odeint, published tolerances", np.max(abs(published - exact)), published_seconds)]
        for name, kind in (("odeint", lambda tolerance: lsoda(tolerance, tolerance)), ("Radau", radau)):
            tolerance, error, seconds = loosest(grid, start, parts, exact, kind)
            rows.append((f"{name}, tolerance {tolerance}", error, seconds))
        error = np.max(abs(own_accuracy(grid, start, parts) - exact))
        for parallel in (1, 16) if quick else (1, 16, 64):
            rows.append((f"khop, {parallel} at once", error, own_speed(grid, parallel, 5 if quick else 30)))
        title = f"microgrid-{inverters}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        table = Table(
            "integrator", "error [pu]", "steps/s", "÷ odeint as published", "÷ odeint at 1e-4 pu", title=title
        )
        for name, error, seconds in rows:
            faster = (f"{rows[reference][2] / seconds:,.1f}" for reference in (0, 1))
            table.add_row(name, f"{error:.1e}", f"{1 / seconds:,.1f}", *faster)
        console.print(table)


if __name__ == "__main__":
    main()
