"""How good is optimal power flow? The convex relaxation of the branch-flow model bounds the losses from below.

Squared voltages and currents in place of voltages and currents make Kirchhoff's laws of a radial grid linear but for
P² + Q² = v ℓ at every branch, which is relaxed to ≤: a second-order cone program (Farivar, M. & Low, S. H., IEEE Trans.
Power Systems 28, 2013; Gan, L. et al., IEEE Trans. Automatic Control 60, 2015). Its optimum is no larger than that of
any reactive power; where all relaxed constraints are tight it is the optimum itself. Needs cvxpy (extra ``opf``).
"""

from __future__ import annotations

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from khop.errors import InputError
from khop.systems.distribution_grid.plant import Plant
from khop.systems.distribution_grid.power_flow import PowerFlow

FIXED_POINT_ITERATIONS = 50


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """The optimum of the relaxation at one moment.

    Attributes:
        reactive: (I,) reactive power of the inverters, Mvar.
        bound: MW lost in lines and transformers; no reactive power that keeps the band loses less.
        gap: largest v ℓ − (P² + Q²) of a branch, pu²; 0 where the relaxation is exact.
        losses: MW that are lost when the power flow is solved with that reactive power; the bound, if it is exact.
        voltages: (N,) that it then has, pu; outside the band only if it is not exact.
    """

    reactive: Float[np.ndarray, " I"]
    bound: float
    gap: float
    losses: float
    voltages: Float[np.ndarray, " N"]


def relaxed_optimum(
    plant: Plant,
    load: Float[np.ndarray, "M 2"],
    sun: Float[np.ndarray, " I"],
    limit: float,
    band: tuple[float, float] = (0.95, 1.05),
) -> Relaxed:
    """The least losses with all voltages in the band, relaxed; then the power flow of what was found.

    Args:
        plant: of a voltage-control system, whose grid must be radial.
        load: active and reactive, at the plant's buses with loads, MW and Mvar.
        sun: active power of the inverters, MW.
        limit: largest share of √(s² − p²) that may be used.
        band: lowest and highest voltage, pu.

    Raises:
        InputError: the grid has loops, cvxpy is missing, or no reactive power keeps the band.
    """
    try:
        import cvxpy as cp
    except ImportError:
        raise InputError("The relaxation of optimal power flow needs cvxpy: pip install 'khop[opf]'.") from None
    grid = plant.data[0]
    if len(grid.from_bus) != grid.buses - 1:
        raise InputError("The branch-flow relaxation needs a radial grid, without loops or parallel branches.")
    branches, buses = len(grid.from_bus), grid.buses
    rows = np.arange(branches)
    leaves, arrives = np.zeros((buses, branches)), np.zeros((buses, branches))
    leaves[grid.from_bus, rows] = arrives[grid.to_bus, rows] = 1
    resistance, reactance = grid.impedance.real, grid.impedance.imag
    capability = np.sqrt(np.maximum(plant.apparent.astype(float) ** 2 - sun**2, 0.0))
    active, reactive = plant.injections(jnp.asarray(load), jnp.asarray(sun), jnp.zeros(len(sun)))
    fixed = np.zeros((2, buses))
    fixed[:, plant.flow.injecting] = np.stack([active, reactive]) / grid.base
    at = np.zeros((buses, len(sun)))
    at[grid.inverter_bus, np.arange(len(sun))] = 1 / grid.base

    square, current = cp.Variable(buses), cp.Variable(branches)  # |V|², |I|²
    p, q = cp.Variable(branches), cp.Variable(branches)  # into the series impedance, at its from-side
    fed = cp.Variable(len(sun))  # Mvar
    behind = cp.multiply(square[grid.from_bus], 1 / abs(grid.ratio) ** 2)
    beyond = square[grid.to_bus]
    lost_series = cp.multiply(resistance, current)
    lost = (
        cp.sum(lost_series)
        + cp.sum(cp.multiply(grid.shunt_from.real, behind))
        + cp.sum(cp.multiply(grid.shunt_to.real, beyond))
    )
    sent_p = p + cp.multiply(grid.shunt_from.real, behind)
    sent_q = q - cp.multiply(grid.shunt_from.imag, behind)
    got_p = p - lost_series - cp.multiply(grid.shunt_to.real, beyond)
    got_q = q - cp.multiply(reactance, current) + cp.multiply(grid.shunt_to.imag, beyond)
    surplus_p = fixed[0] - cp.multiply(grid.shunt.real, square) + arrives @ got_p - leaves @ sent_p
    surplus_q = fixed[1] + at @ fed + cp.multiply(grid.shunt.imag, square) + arrives @ got_q - leaves @ sent_q
    drop = 2 * (cp.multiply(resistance, p) + cp.multiply(reactance, q))
    constraints = [
        square[0] == abs(grid.slack_voltage) ** 2,
        square[1:] >= band[0] ** 2,
        square[1:] <= band[1] ** 2,
        cp.abs(fed) <= limit * capability,
        surplus_p[1:] == 0,
        surplus_q[1:] == 0,
        beyond == behind - drop + cp.multiply(abs(grid.impedance) ** 2, current),
        cp.SOC(current + behind, cp.vstack([2 * p, 2 * q, current - behind])),
    ]
    problem = cp.Problem(cp.Minimize(grid.base * lost), constraints)
    with warnings.catch_warnings():  # that digits are missing shows when the power flow is solved
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise InputError(
            f"No reactive power within the inverters' limit keeps all voltages between {band[0]:g} and {band[1]:g} pu: "
            "widen the band, or raise the limit."
        )
    p_, q_, current_, behind_, fed_ = (np.asarray(found.value) for found in (p, q, current, behind, fed))
    gap = current_ * behind_ - p_**2 - q_**2
    voltage = _power_flow(plant.flow, fixed[0] + 1j * (fixed[1] + at @ fed_))
    losses = grid.base * np.real(voltage @ (grid.admittance @ voltage).conj())
    return Relaxed(fed_, float(problem.value), float(gap.max()), float(losses), abs(voltage))


def _power_flow(flow: PowerFlow, injected: Complex[np.ndarray, " N"]) -> Complex[np.ndarray, " N"]:
    """Voltages by the fixed point of ``PowerFlow``, to the precision of NumPy."""
    voltage = flow.idle
    for _ in range(FIXED_POINT_ITERATIONS):
        current = (injected[flow.injecting] / voltage[flow.injecting]).conj()
        voltage = flow.idle + flow.impedance @ current
    return voltage
