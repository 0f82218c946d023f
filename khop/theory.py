"""The guarantees of model-based decentralised policy optimisation, as numbers.

Theorems 1 to 4 and Corollary 1 of Ma et al. (2024), in their notation: n agents, discount γ, rewards r_i of size up to
r_max, total variations ε_m,i of the local model and ε_π,i between the policy that collected the data and the one that
is improved, N_i^k the agents within k hops of i, itself included. They presume an independent networked system: given
state and actions, every agent's next state is drawn by itself and depends on its direct neighbours alone, so that
influence travels one edge per step.

Formulas are as printed but for these misprints: Theorem 4 needs the size |N_i^k| where N_i^k is printed, and the value
of Theorem 3 is the *discounted* sum of rewards. In a directed graph, an agent's error counts once for everyone who
hears it, as the derivation has it; in an undirected one these are the N_i^k that are printed.

Theorems 1 and 2 have the factor 2 of rewards between −r_max and r_max. Theorems 3 and 4 have not: as printed, they hold
for rewards in an interval of length r_max, such as costs. For rewards of both signs, double them and what they are
compared with; the share, and whether they are vacuous, stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse import csgraph

from khop.errors import InputError
from khop.topology import Kappa, Topology

Number = int | float  # a whole one will do, also under runtime type checks
PerAgent = Number | np.ndarray  # one for all, or (n,)


@dataclass(frozen=True)
class Bound:
    """An upper bound on a difference.

    Attributes:
        name: the theorem it comes from.
        of: the difference that it bounds, in words.
        value: of the bound, in the unit of the difference.
        largest: the largest difference that there can be, whatever is learned.
    """

    name: str
    of: str
    value: float
    largest: float

    @property
    def share(self) -> float:
        """The bound over the largest difference possible; 0 of nothing."""
        return self.value / self.largest if self.largest else 0.0

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing that is not true anyway."""
        return self.value >= self.largest


def vanilla(
    topology: Topology, *, gamma: Number, r_max: Number, model_error: PerAgent, policy_shift: PerAgent
) -> Bound:
    """Theorem 1: real return against that of whole episodes in the models.

        2 r_max / (1 − γ) · Σ_i [ε_π,i / n + (ε_m,i + 2 ε_π,i) Σ_{k ≥ 0} γ^{k+1} |N_i^k| / n]

    Args:
        topology: who hears whom.
        gamma: discount, 0 ≤ γ < 1.
        r_max: largest size of a reward.
        model_error: ε_m, total variation, one number or (n,).
        policy_shift: ε_π, likewise.

    Raises:
        InputError: if an argument is out of its range.
    """
    largest = _largest(gamma, r_max)
    error = _variation("The model error", model_error, topology.n)
    shift = _variation("The policy shift", policy_shift, topology.n)
    share = np.mean(shift + (error + 2 * shift) * discounted_reach(topology, gamma))
    return Bound("Theorem 1", "return of whole episodes in the models", 2 * largest * float(share), 2 * largest)


def branched(
    topology: Topology,
    *,
    gamma: Number,
    r_max: Number,
    model_error: PerAgent,
    policy_shift: PerAgent,
    branch_length: Number,
) -> Bound:
    """Theorem 2: real return against that of rollouts of T steps in the models, branched off real states.

        2 r_max / (1 − γ) · Σ_i [ε_m,i Σ_{k < T} γ^{k+1} |N_i^k| / n + ε_π,i Σ_{k ≥ T} γ^{k+1} |N_i^k| / n]

    Arguments and errors as for `vanilla`; ``branch_length`` is T, a whole number of at least 0, or infinite.
    """
    largest = _largest(gamma, r_max)
    error = _variation("The model error", model_error, topology.n)
    shift = _variation("The policy shift", policy_shift, topology.n)
    after = discounted_reach(topology, gamma, branch_length)
    within = discounted_reach(topology, gamma) - after
    share = np.mean(error * within + shift * after)
    return Bound("Theorem 2", "return of branched rollouts", 2 * largest * float(share), 2 * largest)


def branched_dependent(
    topology: Topology,
    *,
    gamma: Number,
    r_max: Number,
    model_error: PerAgent,
    policy_shift: PerAgent,
    branch_length: Number,
    xi: Number,
) -> Bound:
    """Corollary 1: Theorem 2 where agents' next states are independent but for a total variation ξ of their joint
    distribution, which adds 2 r_max γ ξ / (1 − γ)². Arguments and errors as there.
    """
    independent = branched(
        topology,
        gamma=gamma,
        r_max=r_max,
        model_error=model_error,
        policy_shift=policy_shift,
        branch_length=branch_length,
    )
    dependence = float(_variation("Xi", xi, 1)[0])
    value = independent.value + independent.largest * gamma * dependence / (1 - gamma)
    return Bound("Corollary 1", "the same, of dependent agents", value, independent.largest)


def truncated_value(*, gamma: Number, r_max: Number, kappa: Kappa) -> Bound:
    """Theorem 3: an agent's value given the whole state against that given N_i^κ alone, r_max γ^κ / (1 − γ).

    The mean of values over agents obeys the same bound. κ = "all" leaves nothing out.
    """
    largest = _largest(gamma, r_max)
    return Bound("Theorem 3", "value seen within κ hops", largest * gamma ** _hops(kappa), largest)


def truncated_gradient(topology: Topology, *, gamma: Number, r_max: Number, kappa: Kappa, g_max: Number) -> Bound:
    """Theorem 4: an agent's policy gradient against that from the values of its κ-hop neighbourhood alone.

        γ^{κ−1} / (1 − γ) · [1 − (1 − γ²) |N_i^κ| / n] · r_max · g_max,    for the agent where it is largest

    Args:
        topology, gamma, r_max: as for `vanilla`.
        kappa: hops of the values that are added up. 0 is legal, and gives γ⁻¹ as printed.
        g_max: largest norm of the score function, ∇ log π.
    """
    largest = _largest(gamma, r_max) * _positive("G_max", g_max)
    hops = _hops(kappa)
    inside = topology.neighbourhood(kappa).size.min() / topology.n  # the bound falls with it, or is the same for all
    # The two parts that the bracket joins: values within reach miss what lies outside, values outside are missing.
    value = inside * gamma ** (hops + 1)
    if inside < 1:
        value += (1 - inside) * (gamma ** (hops - 1) if gamma or hops else inf)
    return Bound("Theorem 4", "policy gradient from κ hops", float(largest * value), largest)


def bounds(
    topology: Topology,
    *,
    gamma: Number,
    r_max: Number,
    kappa: Kappa,
    branch_length: Number,
    model_error: PerAgent,
    policy_shift: PerAgent,
    xi: Number,
    g_max: Number,
) -> tuple[Bound, ...]:
    """All five; arguments and errors as for each."""
    errors: dict[str, Any] = {"gamma": gamma, "r_max": r_max, "model_error": model_error, "policy_shift": policy_shift}
    return (
        vanilla(topology, **errors),
        branched(topology, **errors, branch_length=branch_length),
        branched_dependent(topology, **errors, branch_length=branch_length, xi=xi),
        truncated_value(gamma=gamma, r_max=r_max, kappa=kappa),
        truncated_gradient(topology, gamma=gamma, r_max=r_max, kappa=kappa, g_max=g_max),
    )


def discounted_reach(topology: Topology, gamma: Number, start: Number = 0) -> Float[np.ndarray, " n"]:
    """Σ_{k ≥ start} γ^{k+1} |N_i^k| of every agent, exactly; N_i^k are those who hear i within k hops.

    Every j counts from its distance on: Σ_j Σ_{k ≥ max(d_ij, start)} γ^{k+1} = Σ_j γ^{max(d_ij, start) + 1} / (1 − γ).
    """
    _largest(gamma, 1.0)
    if not start >= 0 or (start < inf and start != int(start)):
        raise InputError(f"The branch length must be a whole number of at least 0, or infinite, not {start}.")
    sender, receiver = topology.edges.reshape(-1, 2).T
    graph = sparse.csr_array((np.ones(len(sender)), (sender, receiver)), shape=(topology.n, topology.n))
    reach = np.empty(topology.n)
    for agent in range(topology.n):  # one at a time: no n × n array
        hops = csgraph.shortest_path(graph, "D", directed=topology.directed, unweighted=True, indices=agent)
        reach[agent] = np.sum(gamma ** (np.maximum(hops, start) + 1)) / (1 - gamma)  # γ^∞ = 0: who never hears it
    return reach


def pinsker(divergence: Number) -> float:
    """The largest total variation at a Kullback–Leibler divergence in nats, √(divergence / 2), and never above 1."""
    if not divergence >= 0:
        raise InputError(f"A divergence must be at least 0, not {divergence}.")
    return min(float(np.sqrt(divergence / 2)), 1.0)


def _largest(gamma: Number, r_max: Number) -> float:
    """r_max / (1 − γ), the largest sum of discounted rewards, once both are known to make sense."""
    if not 0 <= gamma < 1:
        raise InputError(f"The discount must be at least 0 and below 1, not {gamma}.")
    return _positive("R_max", r_max) / (1 - gamma)


def _positive(name: str, value: Number) -> float:
    if not 0 < value < inf:
        raise InputError(f"{name} must be a finite number above 0, not {value}.")
    return float(value)


def _hops(kappa: Kappa) -> Number:
    if kappa == "all":
        return inf
    if kappa < 0:
        raise InputError(f"Kappa must be an integer of at least 0 or 'all', got {kappa}.")
    return kappa


def _variation(name: str, value: PerAgent, n: int) -> Float[np.ndarray, " n"]:
    """Total variations of n agents."""
    given = np.asarray(value, float)
    if given.shape not in ((), (n,)) or not ((given >= 0) & (given <= 1)).all():
        agents = f", or {n} of them" if n > 1 else ""
        raise InputError(f"{name} is a total variation: one number from 0 to 1{agents}, not {value!r}.")
    return np.broadcast_to(given, (n,))
