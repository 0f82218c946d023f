"""What a networked system is: its spec, reset and step; and the registry behind ``khop.make``.

Shape letters: n agents, d padded observation size, A padded number of discrete actions, a action dimensions, T steps.
"""

from __future__ import annotations

import abc
import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from khop.errors import InputError, unknown
from khop.topology import Kappa, Topology


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteActions:
    """Each agent picks one of its own ``sizes[i]`` actions.

    Attributes:
        sizes: (n,) number of actions of each agent.
        names: what the actions are, for tables and plots; as many as the largest agent has.
    """

    sizes: np.ndarray
    names: tuple[str, ...]

    @property
    def width(self) -> int:
        """A, the number of actions of the agent that has most."""
        return int(np.max(self.sizes))

    @property
    def mask(self) -> np.ndarray:
        """(n, A), true where the action exists."""
        return np.arange(self.width) < np.asarray(self.sizes)[:, None]

    def sample(self, key: PRNGKeyArray) -> Array:
        """(n,) int, uniform over each agent's own actions."""
        return jax.random.randint(key, (len(self.sizes),), 0, jnp.asarray(self.sizes))


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousActions:
    """Each agent picks a point of its own box.

    Attributes:
        low, high: (n, a) bounds, finite.
        names, units: of the a dimensions.
    """

    low: np.ndarray
    high: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def width(self) -> int:
        """a, the number of action dimensions."""
        return int(np.shape(self.low)[1])

    def sample(self, key: PRNGKeyArray) -> Array:
        """(n, a) float, uniform in each agent's box."""
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return jax.random.uniform(key, low.shape, minval=low, maxval=high)


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What a controller has to know of a system before it sees it.

    Attributes:
        n: number of agents.
        observation_sizes: (n,) how many of the d observation entries each agent really has; the rest is zero padding.
        observation_names, observation_units: of the d entries.
        action: the action set of every agent.
        horizon: steps after which an episode is truncated.
        control_interval_s: seconds between two actions.
        metrics: name → unit of what ``System.metrics`` returns; always holds ``return``.
        baselines: names of the system's own classical controllers, without ``random``.
        kappa_actor, kappa_critic: hops that suit this system where a method leaves them open.
        reward_limit: the size beyond which a step's reward tells of disaster rather than of better and worse; learners
            count what lies beyond as this much unless told otherwise. None: there is no such size.
        discount: γ that suits how long an action is felt, in control intervals; learners use it unless told otherwise.
        gate: the error of learned models one step ahead, as a share of the variance of the change, up to which agents
            practise in them unless told otherwise; higher where nobody can predict most of what changes.
        whole_episodes: experience is collected in whole episodes, as from a simulator whose state cannot be put aside.
    """

    n: int
    observation_sizes: np.ndarray
    observation_names: tuple[str, ...]
    observation_units: tuple[str, ...]
    action: DiscreteActions | ContinuousActions
    horizon: int
    control_interval_s: float
    metrics: dict[str, str]
    baselines: tuple[str, ...] = ()
    kappa_actor: Kappa = 1
    kappa_critic: Kappa = 1
    reward_limit: float | None = None
    discount: float = 0.99
    gate: float = 0.2
    whole_episodes: bool = False

    @property
    def d(self) -> int:
        """Padded observation size."""
        return len(self.observation_names)


class Step(eqx.Module):
    """What one step of a system returns.

    ``obs`` is the successor's true observation, also on the last step of an episode. ``terminated`` says that an
    agent's future is over (no bootstrap); ``truncated`` says that the episode was merely cut off (bootstrap). ``lost``
    says that the episode goes on but nothing the agents do can change it any more, as after a crash: every later step
    brings the same rewards. Evaluation plays a lost episode to its end; training starts a new one.
    """

    state: PyTree
    obs: Float[Array, "n d"]
    reward: Float[Array, " n"]
    terminated: Bool[Array, " n"]
    truncated: Bool[Array, ""]
    info: dict[str, Array]
    lost: Bool[Array, ""] | bool = False

    @property
    def done(self) -> Bool[Array, ""]:
        """The episode is over for everyone."""
        return self.truncated | jnp.all(self.terminated, -1)


class Episode(eqx.Module):
    """One episode on the real system, padded to the horizon T; inside a scan, one moment of it without T.

    ``obs[t]`` is what the agents saw when they chose ``action[t]``; ``info`` is what ``step`` reported after it;
    ``valid[t]`` is false after the episode's end.
    """

    obs: Float[Array, "*T n d"]
    action: Array
    reward: Float[Array, "*T n"]
    info: dict[str, Array]
    valid: Bool[Array, "*T"]


@runtime_checkable
class Controller(Protocol):
    """Anything that can drive a system: a learned policy, a classical controller, dice."""

    def initial(self) -> PyTree:
        """The controller's memory at the start of an episode."""

    def __call__(
        self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Float[Array, "n d"]
    ) -> tuple[PyTree, Array]:
        """The next memory and every agent's action; decentralised controllers leave ``state`` alone."""


class LocalStep(eqx.Module):
    """What one step of a single agent's region returns. Whoever simulates it counts the steps to the horizon."""

    state: PyTree
    obs: Float[Array, " d"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]


@runtime_checkable
class Regions(Protocol):
    """The optional part of a system that local simulators need (influence-augmented abstraction, Suau et al. 2022).

    An agent's region is what its observations and rewards depend on. The rest of the network acts on it through M
    influence sources alone, each one of a few classes: given these, ``step`` is exactly what the whole system does to
    the region. Local states have no axis for agents; whoever simulates many applies vmap.
    """

    @property
    def categories(self) -> tuple[int, ...]:
        """How many classes each of the M sources has."""

    def sources(self, state: PyTree, action: Array, next_state: PyTree) -> Int[Array, "n M"]:
        """What the rest of the system did to every region in a transition of the whole system."""

    def local(self, state: PyTree) -> PyTree:
        """Every agent's region of a state of the whole system; leaves lead with n."""

    def features(self, obs: Float[Array, "*batch d"]) -> Float[Array, "*batch f"]:
        """What a predictor of the sources sees of an agent's observations, of the size of 1."""

    def reset(self, key: PRNGKeyArray, agent: Int[Array, ""]) -> tuple[PyTree, Float[Array, " d"]]:
        """A fresh region of one agent, distributed as in the whole system, and its observation."""

    def step(
        self, key: PRNGKeyArray, agent: Int[Array, ""], state: PyTree, sources: Int[Array, " M"], action: Array
    ) -> LocalStep:
        """Advance the region of one agent, given the classes of its influence sources."""


class System(eqx.Module):
    """A networked system as pure functions over arrays; jit, vmap over environments and shard over n freely.

    A subclass is a frozen dataclass of its parameters. Optional capabilities, found by name: ``baseline(name)``,
    ``render(episodes) -> figure``, ``known_reward(obs, action, next_obs) -> (n,)`` where observations tell the reward,
    ``regions``, what local simulators need.
    """

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """Sizes, names, units and bounds."""

    @property
    @abc.abstractmethod
    def topology(self) -> Topology:
        """Who can hear whom; the same object at every call."""

    @property
    def feedback(self) -> Topology:
        """Whose rewards an agent's actions can reach: i hears j here if j is affected by i at once.

        Learning averages advantages along this graph. It is the topology itself unless influence is one-way, as down
        a platoon; then leaving out those who cannot be reached leaves out noise alone. The same object at every call.
        """
        return self.topology

    @property
    def held_out(self) -> System:
        """The system that evaluation uses: itself, unless some of its conditions are kept from training."""
        return self

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Float[Array, "n d"]]:
        """A fresh state and its observations."""

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """Advance by one control interval. Rewards are in the system's own physical units."""

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """The system's own scalars for one episode, of which this one is common to all: ``return``, the mean over steps
        of the reward summed over agents.
        """
        reward = jnp.where(episode.valid, episode.reward.sum(-1), 0.0)
        return {"return": reward.sum() / episode.valid.sum()}

    def baseline(self, name: str) -> Controller:
        """One of the system's own classical controllers, by a name in ``spec.baselines``."""
        raise unknown("baseline", name, self.spec.baselines)


class ConstantController(eqx.Module):
    """Every agent keeps to one action of its own for ever."""

    action: Array  # (n,) or (n, a)

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Array) -> tuple[PyTree, Array]:
        return carry, self.action


class RandomController(eqx.Module):
    """Every agent acts uniformly at random over its own actions."""

    action: DiscreteActions | ContinuousActions = eqx.field(static=True)

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Array) -> tuple[PyTree, Array]:
        return carry, self.action.sample(key)


def step_and_reset(
    system: System, key: PRNGKeyArray, state: PyTree, action: Array, cut: Bool[Array, ""] | bool = False
) -> tuple[PyTree, Float[Array, "n d"], Step]:
    """Step, and start a new episode where the old one is over or lost.

    Args:
        system, key, state, action: as in ``System.step``.
        cut: truncate the episode here, although it could go on.

    Returns:
        The state and observations to act on next (of the new episode after an end), and the step itself, whose
        ``obs`` is still the final observation of the old episode.
    """
    step_key, reset_key = jax.random.split(key)
    step = system.step(step_key, state, action)
    step = eqx.tree_at(lambda s: s.truncated, step, step.truncated | cut)
    fresh_state, fresh_obs = system.reset(reset_key)
    over = step.done | step.lost
    state, obs = jax.tree.map(
        lambda fresh, old: jnp.where(over, fresh, old), (fresh_state, fresh_obs), (step.state, step.obs)
    )
    return state, obs, step


_REGISTRY: dict[str, type[System]] = {}
_FROM_FILES: dict[str, type[System]] = {}  # by "file.py:name"
_SystemClass = TypeVar("_SystemClass", bound=type[System])


def register(name: str) -> Callable[[_SystemClass], _SystemClass]:
    """Class decorator: make a system known to ``khop.make`` and the command line as ``name``."""

    def add(cls: _SystemClass) -> _SystemClass:
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise InputError(
                f"The system name {name!r} is taken by {_REGISTRY[name].__qualname__}: choose another one."
            )
        _REGISTRY[name] = cls
        return cls

    return add


def registered() -> dict[str, type[System]]:
    """Every known system, by name."""
    return dict(sorted(_REGISTRY.items()))


def system_class(name: str) -> type[System]:
    """The class behind a name; an unknown name is refused with the nearest valid one.

    A name may also be ``path/to/file.py:name``: the file is executed and is expected to register that name.
    """
    file, _, own_name = name.rpartition(":")
    if file.endswith(".py"):
        cls = _class_in_file(Path(file).resolve(), own_name)
    elif name in _REGISTRY:
        cls = _REGISTRY[name]
    else:
        raise unknown("system", name, _REGISTRY)
    return cls


def name_of(system: System) -> str:
    """The name that ``make`` knows a system by."""
    for name, cls in {**_REGISTRY, **_FROM_FILES}.items():
        if cls is type(system):
            return name
    raise InputError(
        f"{type(system).__name__} has no name to be found by again: decorate it with khop.register('name')."
    )


def _class_in_file(file: Path, name: str) -> type[System]:
    full_name = f"{file}:{name}"
    if full_name not in _FROM_FILES:
        if not file.is_file():
            raise InputError(f"There is no file {file}: give a Python file that registers the system {name!r}.")
        before = dict(_REGISTRY)
        try:
            runpy.run_path(str(file), run_name=file.stem)
            own = {found: cls for found, cls in _REGISTRY.items() if found not in before}
        finally:
            _REGISTRY.clear()
            _REGISTRY.update(before)
        if name not in own:
            raise unknown(f"system in {file}", name, own)
        _FROM_FILES.update({f"{file}:{found}": cls for found, cls in own.items()})
    return _FROM_FILES[full_name]


def make(name: str, **parameters: Any) -> System:
    """Build a system by name, e.g. ``make("platoon-catchup", vehicles=16)``.

    Raises:
        InputError: unknown system or parameter (with the nearest valid name), or a value the system refuses.
    """
    cls = system_class(name)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for parameter in parameters:
        if parameter not in known:
            raise unknown(f"parameter of {name}", parameter, known)
    return cls(**parameters)
