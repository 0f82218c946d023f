"""Power flow as a fixed point of the bus impedance matrix, batched and differentiable.

With the slack bus 0 taken out, Kirchhoff's laws read V = w + Z conj(S / V), where Z is the inverse of the remaining
admittance matrix and w the voltages without injections (the implicit Z-bus method: Chen, T.-H. et al., IEEE Trans.
Power Delivery 6, 1991; its convergence: Bolognani, S. & Zampieri, S., IEEE Trans. Power Systems 31, 2016).
Lines, transformers with taps and phase shifts, line charging and shunts are all in Z and w, which NumPy computes once
in float64; a solution is a fixed number of matrix products in whatever precision the injections have. Only buses that
ever inject take part in the iteration: the rest of Z is applied once, at the end.

Shape letters: N buses, m injecting buses, E branches, * any leading axes.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from khop.systems.distribution_grid.grid import Grid

ITERATIONS = {"float32": 14, "float64": 24}  # enough for 1e-6 and 1e-8 pu on the hardest injections of the tests
LARGEST_CHANGE = 1e-4  # pu, of any voltage in the last iteration of a solution
PLAUSIBLE = (0.5, 1.5)  # pu, beyond which a voltage is no solution that a grid would stand


class Solution(eqx.Module):
    """The state of a grid.

    Attributes:
        real, imag: voltages, pu.
        injected: current that the injecting buses feed in, real parts then imaginary parts, pu.
        converged: whether the iteration had come to rest at plausible voltages; if not, the rest means nothing.
    """

    real: Float[Array, "*batch N"]
    imag: Float[Array, "*batch N"]
    injected: Float[Array, "*batch parts"]
    converged: Bool[Array, "*batch"]

    @property
    def magnitude(self) -> Float[Array, "*batch N"]:
        """|V|, pu."""
        return jnp.sqrt(self.real**2 + self.imag**2)


@dataclasses.dataclass(frozen=True, eq=False)
class PowerFlow:
    """The power flow of one grid.

    Attributes:
        grid: the grid.
        injecting: (m,) the buses, without the slack, whose injections may differ from 0.
    """

    grid: Grid
    injecting: Int[np.ndarray, " m"]

    @cached_property
    def impedance(self) -> Complex[np.ndarray, "N m"]:
        """Z, voltage at every bus per current fed in at the injecting ones, pu."""
        inverse = np.linalg.inv(self.grid.admittance[1:, 1:])
        return np.vstack([np.zeros((1, len(self.injecting))), inverse[:, self.injecting - 1]])

    @cached_property
    def idle(self) -> Complex[np.ndarray, " N"]:
        """w, voltages without injections, pu."""
        admittance, slack = self.grid.admittance, self.grid.slack_voltage
        return np.append(slack, -np.linalg.solve(admittance[1:, 1:], admittance[1:, 0] * slack))

    @cached_property
    def series(self) -> tuple[Complex[np.ndarray, "E m"], Complex[np.ndarray, " E"]]:
        """Current through every branch's impedance: per current fed in, and without injections, pu.

        Taking it from here rather than from differences of voltages keeps losses exact in float32.
        """

        def through(voltage: np.ndarray) -> np.ndarray:
            from_side = (voltage[grid.from_bus].T / grid.ratio).T
            return ((from_side - voltage[grid.to_bus]).T / grid.impedance).T

        grid = self.grid
        return through(self.impedance), through(self.idle)

    def solve(
        self, active: Float[Array, "*batch m"], reactive: Float[Array, "*batch m"], iterations: int | None = None
    ) -> Solution:
        """Voltages under given injections.

        Args:
            active, reactive: fed in (loads are negative) at the injecting buses, MW and Mvar.
            iterations: how many; by default as many as the precision can use.
        """
        dtype = active.dtype
        p, q = active / self.grid.base, reactive / self.grid.base
        inner = _split(self.impedance[self.injecting], dtype)
        rest = _split(self.idle[self.injecting], dtype)

        def inject(voltage: Array) -> Array:
            real, imag = jnp.split(voltage, 2, -1)
            square = real**2 + imag**2
            return jnp.concatenate([(p * real + q * imag) / square, (p * imag - q * real) / square], -1)

        def iterate(voltages: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            voltage = voltages[0]
            return (rest + _times(inner, inject(voltage)), voltage), None

        start = jnp.broadcast_to(rest, (*p.shape[:-1], rest.size))
        count = ITERATIONS[str(dtype)] if iterations is None else iterations
        (voltage, before), _ = jax.lax.scan(iterate, (start, start), length=count)
        injected = inject(voltage)
        whole = _split(self.idle, dtype) + _times(_split(self.impedance, dtype), injected)
        real, imag = jnp.split(whole, 2, -1)
        square = real**2 + imag**2
        low, high = PLAUSIBLE
        converged = (
            (jnp.max(abs(voltage - before), -1, initial=0.0) < LARGEST_CHANGE)
            & (jnp.min(square, -1) > low**2)
            & (jnp.max(square, -1) < high**2)
        )
        return Solution(real, imag, injected, converged)

    def losses(self, solution: Solution) -> Float[Array, "*batch E"]:
        """Active power lost in every branch, MW."""
        grid, dtype = self.grid, solution.real.dtype
        per_current, idle = self.series
        real, imag = jnp.split(_split(idle, dtype) + _times(_split(per_current, dtype), solution.injected), 2, -1)
        square = solution.real**2 + solution.imag**2
        constants = grid.impedance.real, (grid.shunt_from / abs(grid.ratio) ** 2).real, grid.shunt_to.real
        resistance, at_from, at_to = (jnp.asarray(constant, dtype) for constant in constants)
        series = resistance * (real**2 + imag**2)
        return grid.base * (series + at_from * square[..., grid.from_bus] + at_to * square[..., grid.to_bus])


def _split(values: Complex[np.ndarray, "..."], dtype: np.dtype) -> Array:
    """Complex numbers as real ones: a vector as its parts in a row, a matrix as what acts on such vectors."""
    if values.ndim == 1:
        return jnp.asarray(np.concatenate([values.real, values.imag]), dtype)
    return jnp.asarray(np.block([[values.real, -values.imag], [values.imag, values.real]]), dtype)


def _times(matrix: Float[Array, "a b"], vector: Float[Array, "*batch b"]) -> Float[Array, "*batch a"]:
    """Matrix times vectors in full precision, which accelerators would otherwise cut short."""
    return jnp.matmul(vector, matrix.T, precision=jax.lax.Precision.HIGHEST)
