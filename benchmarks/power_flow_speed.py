"""How fast and how exact is the power flow?

Prints a table: for every grid, the largest difference from pandapower's ``runpp`` over 200 random injections, and the
time of one solution in a batch of 256 beside the time of one ``runpp``, each the median of several repetitions; and,
where lightsim2grid is installed (``pip install lightsim2grid``), of one of its solutions.
``--environment`` measures steps per second of 64 parallel environments under random actions instead.

    .venv/bin/python benchmarks/power_flow_speed.py [--quick] [--environment]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandapower
import pandapower.networks
from rich.console import Console
from rich.table import Table

import khop
from khop.system import step_and_reset
from khop.systems.distribution_grid import builtin, nets
from khop.systems.distribution_grid.pandapower_grid import as_grid
from khop.systems.distribution_grid.power_flow import PowerFlow

BATCH = 256
NETS: dict[int, Callable[[], pandapower.pandapowerNet]] = {
    33: pandapower.networks.case33bw,
    141: nets.case141_net,
    322: nets.net_322,
    421: nets.net_421,
}


def seconds(run: Callable[[], object], repetitions: int) -> float:
    """Median time of a call after a first one."""
    run()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def lightsim_seconds(net: pandapower.pandapowerNet, repetitions: int) -> float:
    """Median time of lightsim2grid's Newton method from the true angles; NaN where it is not installed."""
    try:
        from lightsim2grid.gridmodel import init_from_pandapower
    except ImportError:
        return float("nan")
    model = init_from_pandapower(net)
    start = np.exp(1j * np.deg2rad(net.res_bus.va_degree.to_numpy()))
    found = model.ac_pf(start, 20, 1e-8)
    assert abs(abs(found) - net.res_bus.vm_pu).max() < 1e-6
    return seconds(lambda: model.ac_pf(start, 20, 1e-8), repetitions)


def compare(buses: int, scenarios: int) -> list[str]:
    """One row of the table."""
    grid, profiles = builtin.grid_and_profiles(buses)
    net = NETS[buses]()
    net.line = net.line[net.line.in_service]
    if buses == 33:
        net.bus["zone"] = "main"
        for bus in grid.inverter_bus:
            pandapower.create_sgen(net, bus, 0.0)
    rows = as_grid(net)[1]
    loads, reactive_loads, (p, q) = net.load.p_mw.copy(), net.load.q_mvar.copy(), np.zeros((2, scenarios, grid.buses))
    scale = profiles.load_active.sum() / loads.sum()
    random = np.random.default_rng(0)
    voltages, losses, times = np.zeros((scenarios, grid.buses)), np.zeros(scenarios), []
    for scenario in range(scenarios):
        share = scale * random.uniform(0.1, 0.8, len(net.load))
        net.load["p_mw"], net.load["q_mvar"] = share * loads, share * reactive_loads
        net.sgen["p_mw"] = random.uniform(0, 0.8) * grid.inverter_peak
        net.sgen["q_mvar"] = random.uniform(-0.5, 0.5, grid.inverters) * grid.inverter_peak
        started = time.perf_counter()
        init = "results" if scenario else "dc"
        pandapower.runpp(net, tolerance_mva=1e-8, calculate_voltage_angles=True, init=init, lightsim2grid=False)
        times.append(time.perf_counter() - started)
        voltages[scenario, rows] = net.res_bus.vm_pu
        losses[scenario] = net.res_line.pl_mw.sum()
        for table, sign in ((net.load, -1), (net.sgen, 1)):
            np.add.at(p[scenario], rows[table.bus], sign * table.p_mw)
            np.add.at(q[scenario], rows[table.bus], sign * table.q_mvar)
    flow = PowerFlow(grid, np.flatnonzero(np.any(p != 0, 0) & (np.arange(grid.buses) > 0)))
    cells = [str(buses)]
    per_solve = {}
    for precision in ("float64", "float32"):
        with jax.enable_x64(precision == "float64"):
            both = [jnp.asarray(x[:, flow.injecting], precision) for x in (p, q)]
            solution = jax.jit(flow.solve)(*both)
            assert np.all(solution.converged)
            worst = np.abs(np.asarray(solution.magnitude) - voltages).max()
            lost = np.asarray(flow.losses(solution))[:, grid.is_line].sum(1)
            worst_loss = np.abs(lost / losses - 1).max()
            batch = [jnp.resize(x, (BATCH, x.shape[1])) for x in both]
            solve = jax.jit(lambda p, q: flow.solve(p, q).magnitude)
            per_solve[precision] = seconds(lambda: jax.block_until_ready(solve(*batch)), 15) / BATCH  # noqa: B023
        cells += [f"{worst:.1e}", f"{worst_loss:.1e}", f"{1e6 * per_solve[precision]:.1f}"]
    runpp = statistics.median(times)
    ratios = " / ".join(f"{runpp / per_solve[precision]:,.0f}" for precision in per_solve)
    light = lightsim_seconds(net, scenarios)
    light_ratios = " / ".join(f"{light / per_solve[precision]:.1f}" for precision in per_solve)
    return [*cells, f"{1e3 * runpp:.1f}", ratios, f"{1e6 * light:.0f}", light_ratios]


def environment_speed(name: str, environments: int = 64, steps: int = 60) -> float:
    """Environment steps per second under random actions."""
    system = khop.make(name)

    def act(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        state, _ = carry
        action_key, step_key = jax.random.split(key)
        state, obs, step = step_and_reset(system, step_key, state, system.spec.action.sample(action_key))
        return (state, obs), step.reward.sum()

    @jax.jit
    def play(key: jax.Array) -> jax.Array:
        def alone(key: jax.Array) -> jax.Array:
            return jax.lax.scan(act, system.reset(key), jax.random.split(key, steps))[1]

        return jax.vmap(alone)(jax.random.split(key, environments))

    return environments * steps / seconds(lambda: jax.block_until_ready(play(jax.random.key(0))), 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 injections instead of 200")
    parser.add_argument("--environment", action="store_true", help="steps of environments instead of power flows")
    arguments = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {jax.default_backend()}, load average {os.getloadavg()[0]:.1f}"
    console = Console(width=200)
    if arguments.environment:
        table = Table("grid", "steps/s of 64 environments", "agent-steps/s", title=machine)
        for buses in NETS:
            rate = environment_speed(f"grid-{buses}")
            table.add_row(str(buses), f"{rate:,.0f}", f"{rate * khop.make(f'grid-{buses}').spec.n:,.0f}")
    else:
        headings = [f"{what}, {p}" for p in ("f64", "f32") for what in ("|V| [pu]", "line loss", "µs/solve")]
        others = [
            f"{name} {what}"
            for name, unit in (("runpp", "ms"), ("lightsim2grid", "µs"))
            for what in (f"[{unit}]", "÷ f64 / f32")
        ]
        table = Table("grid", *headings, *others, title=machine)
        for buses in NETS:
            table.add_row(*compare(buses, 20 if arguments.quick else 200))
    console.print(table)


if __name__ == "__main__":
    main()
