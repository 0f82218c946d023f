"""The options of the learned world."""

from __future__ import annotations

import dataclasses
from typing import Literal

from khop.errors import InputError
from khop.system import Spec
from khop.topology import Kappa


@dataclasses.dataclass(frozen=True)
class Imagination:
    """How local models are learned and used."""

    kappa_model: Kappa = 1
    """Hops a local model sees."""
    model_hidden: tuple[int, ...] = (64, 64)
    """Widths of the models' hidden layers."""
    linear: bool = False
    """Predict the next state linearly."""
    ensemble: int = 5
    """Models per agent."""
    window: int = 1
    """Steps that models are trained to predict open-loop."""
    input_noise: float = 0.2
    """Spread of the noise on the observations that models learn from, in units of the spread of the change: in
    imagination they read what they have predicted, which is never quite right."""
    model_batch: int = 128
    """Windows in a gradient step of each model."""
    model_learning_rate: float = 6e-3
    """Adam's step size for the models."""
    fit_rounds: int = 5
    """At most so many rounds of 25 gradient steps after each batch of real experience."""
    branch_length: int = 100
    """T, the most steps of an imagined rollout."""
    branches: int = 60
    """Imagined rollouts side by side; a multiple of the ensemble."""
    rounds: int = 30
    """Imagined batches between two real ones."""
    imagined_share: float = 1.0
    """Probability that a round practises on imagined instead of real experience."""
    gate: float | None = None
    """Held-out error, as a share of the variance of the change, up to which imagined steps are used; None for what
    suits the system."""
    shortest_branch: float = 0.1
    """Share of the horizon, 1 / (1 − γ) steps, for which models must be trusted; until then all practice is real. What
    happens beyond a branch only the critic knows."""
    stay_in_range: bool = True
    """Keep imagined states and rewards within the range seen."""
    model_reward: Literal["learned", "known"] = "learned"
    """Predict rewards, or compute them by the system's ``known_reward``."""
    memory: int = 50_000
    """Real steps that are remembered."""

    def __post_init__(self) -> None:
        for name in ("ensemble", "window", "model_batch", "fit_rounds", "branch_length", "branches", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.branches % self.ensemble:
            nearest = max(round(self.branches / self.ensemble), 1) * self.ensemble
            raise InputError(
                f"branches must be a multiple of the ensemble of {self.ensemble}, e.g. {nearest}, not {self.branches}."
            )
        if not 0 <= self.imagined_share <= 1:
            raise InputError(f"imagined_share must lie between 0 and 1, not {self.imagined_share:g}.")
        if not 0 < self.shortest_branch <= 1:
            raise InputError(f"shortest_branch must lie above 0 and be at most 1, not {self.shortest_branch:g}.")
        if not 0 <= self.input_noise < float("inf"):
            raise InputError(f"input_noise must be finite and at least 0, not {self.input_noise:g}.")
        if not (self.gate is None or self.gate > 0) or not self.model_learning_rate > 0:
            raise InputError("gate and model_learning_rate must be above 0.")

    def resolved(self, spec: Spec) -> Imagination:
        """What was left open as the system suggests."""
        return dataclasses.replace(self, gate=spec.gate) if self.gate is None else self
