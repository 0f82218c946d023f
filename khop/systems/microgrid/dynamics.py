"""How a microgrid moves: droop-controlled inverters on a network of resistances and inductances, in dq coordinates.

The model is that of PowerNet (Chen et al. 2022), after Bidram et al. (2013). All currents and bus voltages are complex
numbers d + jq in the frame that turns with inverter 1. Its currents settle within nanoseconds to hours of the 60 Hz
network, so it is integrated by an implicit-explicit Runge–Kutta scheme, ARS(2,2,2) of Ascher, Ruuth & Spiteri (1997):
second order, L-stable in what is implicit.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from khop.systems.microgrid.network import NOMINAL_FREQUENCY, POWER_FILTER, VIRTUAL_RESISTANCE, Network

GAMMA = 1 - 1 / np.sqrt(2)  # of the implicit half of the scheme
DELTA = 1 - 1 / (2 * GAMMA)  # of its explicit half


class Electrical(eqx.Module):
    """What flows in a microgrid at one instant."""

    angle: Float[Array, " n"]  # rad, of each inverter, relative to inverter 1
    active: Float[Array, " n"]  # W, measured through a low-pass filter
    reactive: Float[Array, " n"]  # var, likewise
    frequency: Float[Array, " n"]  # rad/s, set-point minus the nominal frequency
    current: Complex[Array, " m"]  # A, in every branch
    bus_voltage: Complex[Array, " b"]  # V


def at_rest(network: Network) -> Electrical:
    """Nothing flows."""
    none = jnp.zeros(network.n)
    buses, branches = network.incidence.shape
    return Electrical(none, none, none, none, jnp.zeros(branches) + 0j, jnp.zeros(buses) + 0j)


def terminal_voltage(network: Network, set_point: Float[Array, " n"], reactive: Float[Array, " n"]) -> Array:
    """The droop law: each inverter's voltage in V falls with its reactive power, (n,)."""
    return set_point - network.reactive_droop * reactive


def advance(
    network: Network,
    state: Electrical,
    set_point: Float[Array, " n"],
    load: Float[Array, "2 loads"],
    frequency_control: Bool[Array, ""] | bool,
    seconds: float,
    substeps: int,
) -> Electrical:
    """Integrate over some time in which set-points and loads are constant.

    Args:
        network: the microgrid.
        state: where it stands.
        set_point: of the inverters' voltages, V.
        load: resistance and inductance of each load, as multiples of the network's.
        frequency_control: whether the inverters bring the frequency back to its nominal value.
        seconds: how long.
        substeps: into how many steps to cut that time.
    """
    n, m = network.n, len(network.resistance)
    first_load = m - network.loads
    resistance, inductance = (
        jnp.concatenate([values[:first_load], values[first_load:] * factor + service])
        for values, factor, service in (
            (network.resistance, load[0], network.service_resistance),
            (network.inductance, load[1], network.service_inductance),
        )
    )
    h = seconds / substeps
    z = GAMMA * h
    companion = reciprocal(inductance + z * (resistance + 1j * NOMINAL_FREQUENCY * inductance))
    incidence, balance = jnp.asarray(network.incidence), jnp.asarray(network.balance)
    conductance = jnp.eye(len(incidence)) / VIRTUAL_RESISTANCE + (balance * (z * companion)) @ incidence.T
    impedance = inverse(conductance)
    real, imaginary = impedance.real, impedance.imag
    consensus = jnp.asarray(np.linalg.inv(np.eye(n) + z * network.consensus))
    pinning = jnp.asarray(network.pinning * network.active_droop)

    def rates(s: Electrical) -> tuple[Array, Array, Array, Array]:
        """What is explicit: of angle, active and reactive power, and what turns the currents beyond 60 Hz."""
        speed = s.frequency - network.active_droop * s.active
        local = s.current[:n] * turn(-s.angle)
        power = terminal_voltage(network, set_point, s.reactive) * local.conj()
        turning = jnp.pad(speed - speed[0], (0, m - n)) - speed[0]
        return (
            speed - speed[0],
            POWER_FILTER * (power.real - s.active),
            POWER_FILTER * (power.imag - s.reactive),
            1j * turning * s.current,
        )

    def stage(angle: Array, active: Array, reactive: Array, frequency: Array, current: Array) -> Electrical:
        """Solve for what is implicit, frequency and currents, given what the explicit half and earlier stages add."""
        source = terminal_voltage(network, set_point, reactive) * turn(angle)
        flow = (inductance * current + jnp.pad(z * source, (0, m - n))) * companion
        surplus = signed_sum(network.balance, flow)
        bus_voltage = jax.lax.complex(  # on a CPU, XLA multiplies complex matrices three times slower
            real @ surplus.real - imaginary @ surplus.imag, real @ surplus.imag + imaginary @ surplus.real
        )
        current = flow - z * companion * signed_sum(network.incidence.T, bus_voltage)
        controlled = consensus @ (frequency + z * pinning * active)
        return Electrical(
            angle, active, reactive, jnp.where(frequency_control, controlled, frequency), current, bus_voltage
        )

    def substep(s: Electrical, _: None) -> tuple[Electrical, None]:
        d_angle, d_active, d_reactive, turned = rates(s)
        middle = stage(
            s.angle + z * d_angle,
            s.active + z * d_active,
            s.reactive + z * d_reactive,
            s.frequency,
            s.current + z * turned,
        )
        e_angle, e_active, e_reactive, later_turned = rates(middle)
        implicit = (1 - GAMMA) / GAMMA

        def explicit(first: Array, second: Array) -> Array:
            return h * (DELTA * first + (1 - DELTA) * second)

        end = stage(
            s.angle + explicit(d_angle, e_angle),
            s.active + explicit(d_active, e_active),
            s.reactive + explicit(d_reactive, e_reactive),
            s.frequency + implicit * (middle.frequency - s.frequency),
            s.current + implicit * (middle.current - s.current - z * turned) + explicit(turned, later_turned),
        )
        return end, None

    return jax.lax.scan(substep, state, length=substeps)[0]


def turn(angle: Float[Array, " n"]) -> Complex[Array, " n"]:
    """e^(j angle)."""
    return jax.lax.complex(jnp.cos(angle), jnp.sin(angle))


def reciprocal(x: Complex[Array, "*any"]) -> Complex[Array, "*any"]:
    """1 / x where |x|² neither overflows nor vanishes, without the scaling of the general division."""
    return x.conj() / (x.real**2 + x.imag**2)


def signed_sum(signs: Float[np.ndarray, "rows columns"], x: Complex[Array, " columns"]) -> Complex[Array, " rows"]:
    """``signs @ x`` for a matrix of few ones and minus ones, all else 0."""
    terms = int(np.count_nonzero(signs, axis=1).max())
    columns = np.argsort(signs == 0, axis=1, kind="stable")[:, :terms]
    return (jnp.asarray(np.take_along_axis(signs, columns, axis=1)) * x[columns]).sum(-1)


def inverse(matrix: Complex[Array, "b b"]) -> Complex[Array, "b b"]:
    """By Gauss–Jordan elimination without pivoting, which such conductance matrices do not need.

    Unlike LAPACK's, it can be batched inside a compiled loop without contending for XLA's threads.
    """

    def eliminate(matrix: Array, k: Array) -> tuple[Array, None]:
        pivot = reciprocal(matrix[k, k])
        row = (matrix[k] * pivot).at[k].set(pivot)
        column = matrix[:, k].at[k].set(0)
        rest = matrix.at[:, k].set(0) - column[:, None] * row
        return rest.at[k].set(row), None

    return jax.lax.scan(eliminate, matrix, jnp.arange(len(matrix)))[0]
