"""The methods, each a row of choices over the same parts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import tyro

from khop.errors import InputError, unknown
from khop.learners.ppo import PPO
from khop.system import DiscreteActions, Spec, System
from khop.topology import Kappa, MessageCost, Topology
from khop.worlds.imagination import Imagination
from khop.worlds.influence import Influence


@dataclasses.dataclass(frozen=True)
class Method:
    """What agents see, how they practise and how they learn."""

    name: tyro.conf.Suppress[str] = "custom"
    kappa_actor: Kappa | None = None
    """Hops an actor sees: a number, "all", or None for what suits the system."""
    kappa_critic: Kappa | None = None
    """Hops a critic sees and an advantage is averaged over."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actors and critics."""
    share: bool = False
    """One set of weights for all agents, which suits agents that are alike."""
    recurrent: int = 0
    """Width of a recurrent layer (GRU) before the hidden ones, which policy and value then share; 0: none."""
    pass_memory: bool = False
    """A single memory that agents, who share weights, read and leave to the next one in turn; no way to act alone, but
    what the published baseline of local simulators does by accident."""
    environments: int = 32
    """Copies of the system that run side by side; fewer where experience comes in whole episodes only."""
    rollout: int = 64
    """Steps in each copy between two updates; rounded up to whole episodes where a system wants that."""
    shortest_episode: float = 0.2
    """Episodes of practice are cut at a random share of the horizon, at least this one, to see more of how they begin;
    1: only the first are. Without effect in local simulators and where experience comes in whole episodes."""
    graph: Literal["topology", "non-adjacent"] = "topology"
    """Whom agents hear: their neighbours, or strangers half the system away (a control experiment)."""
    learner: PPO = dataclasses.field(default_factory=PPO)
    """How policies and values improve."""
    imagination: Imagination | None = None
    """How local models are learned and practised in; None: agents practise on the real system alone."""
    influence: Influence | None = None
    """How influence is predicted in local simulators; None: agents do not practise in local simulators."""

    def __post_init__(self) -> None:
        for name in ("environments", "rollout"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.shortest_episode <= 1:
            raise InputError(f"shortest_episode must lie between 0 and 1, not {self.shortest_episode:g}.")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"hidden must be one or more positive widths, e.g. 64 64, not {self.hidden}.")
        if self.learner.minibatches > self.environments * self.rollout:
            raise InputError(
                f"{self.learner.minibatches} minibatches do not fit a batch of {self.environments} environments × "
                f"{self.rollout} steps: choose at most {self.environments * self.rollout}."
            )
        if self.recurrent < 0:
            raise InputError(f"recurrent must be at least 0, not {self.recurrent}.")
        if self.recurrent and self.rollout % self.learner.sequence:
            raise InputError(f"rollout must be a multiple of the sequence of {self.learner.sequence} steps.")
        if self.recurrent and self.learner.minibatches * self.learner.sequence > self.environments * self.rollout:
            raise InputError(
                f"{self.learner.minibatches} minibatches of sequences of {self.learner.sequence} steps do not fit a "
                f"batch of {self.environments} environments × {self.rollout} steps: lower minibatches."
            )
        if self.pass_memory and not (self.recurrent and self.share and self.influence is None):
            raise InputError(
                "Agents can pass memory on if they have memory, share weights and act in the whole system."
            )
        if self.recurrent and self.imagination is not None:
            raise InputError("Agents with memory cannot practise in learned models: set recurrent to 0.")
        if self.influence is not None and (self.kappa_actor, self.kappa_critic) != (0, 0):
            raise InputError("In local simulators agents are alone: kappa_actor and kappa_critic must be 0.")
        if self.influence is not None and self.imagination is not None:
            raise InputError("Agents practise in local simulators or in learned models: set imagination or influence.")
        imagination = self.imagination
        if imagination is not None and max(imagination.window, imagination.branch_length) > self.rollout:
            raise InputError(
                f"A rollout of {self.rollout} steps is too short to learn windows of {imagination.window} and branches "
                f"of {imagination.branch_length} steps from: raise rollout, or lower window and branch_length."
            )

    def kappas(self, spec: Spec) -> tuple[Kappa, Kappa]:
        """κ of actor and critic, the system's own choice where the method leaves one open."""
        return (
            spec.kappa_actor if self.kappa_actor is None else self.kappa_actor,
            spec.kappa_critic if self.kappa_critic is None else self.kappa_critic,
        )

    @property
    def usual_steps(self) -> int:
        """Steps to train for where nothing else is said: models need far fewer, memory more."""
        if self.recurrent:
            return 1_000_000
        return 600_000 if self.imagination is None else 30_000

    def topology(self, system: System) -> Topology:
        """Who hears whom."""
        return displaced(system.topology) if self.graph == "non-adjacent" else system.topology

    def feedback(self, system: System) -> Topology:
        """Who learns from whose advantages."""
        return displaced(system.topology) if self.graph == "non-adjacent" else system.feedback

    def resolved(self, spec: Spec) -> Method:
        """The method with nothing left open."""
        kappa_actor, kappa_critic = self.kappas(spec)
        environments, rollout = self.environments, self.rollout
        if spec.whole_episodes and rollout % spec.horizon:  # at least as large a batch, in whole episodes
            rollout = -(-self.rollout // spec.horizon) * spec.horizon
            environments = -(-self.environments * self.rollout // rollout)
        return dataclasses.replace(
            self,
            kappa_actor=kappa_actor,
            kappa_critic=kappa_critic,
            environments=environments,
            rollout=rollout,
            learner=self.learner.resolved(spec),
            imagination=self.imagination and self.imagination.resolved(spec),
        )


MODEL_BASED = Method(
    "mdpo",
    kappa_actor=1,
    environments=1,
    rollout=600,
    learner=PPO(actor_learning_rate=1.2e-3, critic_learning_rate=2e-3, epochs=2, minibatches=32, entropy=0.006),
    imagination=Imagination(),
)
WITH_MEMORY = Method(  # the networks of Suau et al. (2022), their learner on batches 16 times as large
    "ippo-memory",
    kappa_actor=0,
    kappa_critic=0,
    recurrent=256,
    hidden=(128,),
    environments=16,
    rollout=128,
    shortest_episode=1.0,
    learner=PPO(
        actor_learning_rate=1e-3, epochs=3, minibatches=4, clip=0.2, target_kl=1e6, max_gradient_norm=10.0, sequence=8
    ),
)
METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("ippo", kappa_actor=0, kappa_critic=0),
        Method("dppo", kappa_actor=1),
        Method("cppo", kappa_actor=1, kappa_critic="all"),
        MODEL_BASED,
        dataclasses.replace(
            MODEL_BASED, name="impo", kappa_actor=0, kappa_critic=0, imagination=Imagination(kappa_model=0)
        ),
        dataclasses.replace(MODEL_BASED, name="mpo-na", graph="non-adjacent"),
        dataclasses.replace(MODEL_BASED, name="mdpo-linear", imagination=Imagination(linear=True)),
        WITH_MEMORY,
        dataclasses.replace(WITH_MEMORY, name="dials", influence=Influence()),
        dataclasses.replace(WITH_MEMORY, name="dials-untrained", influence=Influence(predictor="untrained")),
    )
}
SUMMARIES: dict[str, str] = {
    "ippo": "independent PPO: actors and critics see their own agent alone",
    "dppo": "decentralised PPO: actors see 1 hop, critics κ hops; advantages are averaged over κ hops",
    "cppo": "centralised training: actors see 1 hop, critics and the advantage average all agents",
    "mdpo": "model-based dppo: agents learn local models of κ hops and practise in them",
    "impo": "independent model-based PPO: actors, critics and models see their own agent alone",
    "mpo-na": "mdpo on a non-adjacent graph: agents hear strangers instead of neighbours",
    "mdpo-linear": "mdpo whose local models predict the next state linearly",
    "ippo-memory": "ippo with recurrent networks, on the real system: what dials is to be compared with",
    "dials": "each agent practises in a local simulator, with a learned predictor of what others do to it",
    "dials-untrained": "dials whose predictors learn nothing (a control experiment)",
}


def method(name: str) -> Method:
    """A method by name; an unknown one is refused with the nearest valid name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


@dataclasses.dataclass(frozen=True)
class Communication:
    """What crosses the network per agent and step, in scalars."""

    acting: MessageCost
    training: MessageCost


def communication(method: Method, system: System) -> Communication:
    """Messages of a method: observations within κ_actor hops to act; to train, real or imagined observations within the
    widest radius, one advantage from each agent within κ_critic hops of feedback, and actions within κ_model hops.
    """
    spec, topology = system.spec, method.topology(system)
    kappa_actor, kappa_critic = method.kappas(spec)
    sizes = spec.observation_sizes.astype(float)
    acting = topology.message_cost(kappa_actor, sizes)
    observations = [acting, topology.message_cost(kappa_critic, sizes)]
    others = [method.feedback(system).message_cost(kappa_critic, 1.0)]
    if method.imagination is not None:
        kappa_model = method.imagination.kappa_model
        observations.append(topology.message_cost(kappa_model, sizes))
        action_size = 1.0 if isinstance(spec.action, DiscreteActions) else float(spec.action.width)
        others.append(topology.message_cost(kappa_model, action_size))
    per_agent = max(cost.per_agent for cost in observations) + sum(cost.per_agent for cost in others)
    centralised = acting.centralised + sum(cost.centralised for cost in others)
    training = MessageCost(per_agent, centralised, per_agent / centralised if centralised else 0.0)
    return Communication(acting, training)


@functools.cache
def displaced(topology: Topology) -> Topology:
    """The graph of the control experiment: i and j hear each other where |i − j| = n // 2 (as published)."""
    far = max(topology.n // 2, 1)
    first = np.arange(topology.n - far)
    return Topology.from_edges(topology.n, np.stack([first, first + far], axis=1), positions=topology.positions)


def configured(method: Method, **options: Any) -> Method:
    """A method with some of its fields, or of its learner's or its imagination's, changed by name."""
    kinds = ("learner", "imagination", "influence")
    parts: dict[str, Any] = {kind: getattr(method, kind) for kind in kinds if getattr(method, kind) is not None}
    own = _names(method) - set(kinds)
    known = own.union(*map(_names, parts.values()))
    for name in options:
        if name not in known:
            raise unknown(f"option of {method.name}", name, known)
    changed: dict[str, Any] = {
        part: dataclasses.replace(value, **{k: v for k, v in options.items() if k in _names(value)})
        for part, value in parts.items()
    }
    return dataclasses.replace(method, **changed, **{k: v for k, v in options.items() if k in own})


def restored(options: dict[str, Any]) -> Method:
    """A method from its JSON."""
    imagination = options["imagination"]
    if imagination is not None:
        imagination = Imagination(**dict(imagination, model_hidden=tuple(imagination["model_hidden"])))
    influence = options["influence"] and Influence(**options["influence"])
    parts = {"learner": PPO(**options["learner"]), "imagination": imagination, "influence": influence}
    return Method(**dict(options, hidden=tuple(options["hidden"]), **parts))


def _names(options: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}
