"""The loop: act in the world, improve the policies, again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from khop.agents.policies import Actors, Critics
from khop.agents.recurrent import RecurrentActors
from khop.hosts.system import HostedSystem
from khop.learners.ppo import METRICS, LearnerState, Samples
from khop.learners.recurrent import RecurrentPPO, RecurrentState
from khop.methods import Method
from khop.sharding import everywhere, mesh, put_everywhere
from khop.system import System
from khop.trajectory import Trajectory
from khop.worlds.hosted import HostedState, HostedWorld
from khop.worlds.influence import InfluenceState, InfluenceWorld, regions_of
from khop.worlds.learned import LearnedState, LearnedWorld, known_reward
from khop.worlds.real import RealState, RealWorld


@runtime_checkable
class World(Protocol):
    """Where agents act, in B environments side by side; its state is its own affair."""

    def init(self, key: PRNGKeyArray, actors: Any) -> Any:
        """The first state."""

    def fit(self, key: PRNGKeyArray, state: Any, actors: Any, steps: int) -> Any:
        """Learn what the next ``steps`` steps need to be known."""

    def rollout(self, key: PRNGKeyArray, state: Any, actors: Any, steps: int) -> tuple[Any, Trajectory]:
        """Let the actors act for some steps in every environment."""

    def log(self, state: Any) -> dict[str, Array]:
        """What the world has to say for itself."""


class TrainingState(eqx.Module):
    """Everything that training changes; written to disk and read back it continues to the same result."""

    key: PRNGKeyArray
    iteration: Int[Array, ""]
    real: RealState | InfluenceState | HostedState  # of the world that agents act in
    learned: LearnedState | None  # of methods that practise in learned models
    learner: LearnerState | RecurrentState


@dataclasses.dataclass(frozen=True)
class Training:
    """A method on a system, as two pure functions: the first state, and one iteration."""

    system: System
    method: Method
    steps: int  # the budget, in real environment steps

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method.resolved(self.system.spec))
        if self.method.imagination is not None and self.method.imagination.model_reward == "known":
            known_reward(self.system)  # refused now rather than in the middle
        if self.method.influence is not None:
            regions_of(self.system)

    @property
    def real(self) -> World:
        """Where agents act: the real system, compiled or hosted, or local simulators."""
        if self.method.influence is not None:
            return InfluenceWorld(self.system, self.method.environments, self.method.influence)
        if isinstance(self.system, HostedSystem):
            return HostedWorld(self.system, self.method.environments)
        return RealWorld(self.system, self.method.environments, self.method.shortest_episode)

    @property
    def learned(self) -> LearnedWorld | None:
        """Where experience is imagined."""
        imagination = self.method.imagination
        if imagination is None:
            return None
        neighbourhood = self.method.topology(self.system).neighbourhood(imagination.kappa_model)
        segments = max(imagination.memory // self.method.rollout, 2)
        worth = round(imagination.shortest_branch / max(1 - self.method.learner.gamma, 1e-3))
        shortest = min(max(worth, 1), imagination.branch_length)
        share, rollout = self.method.share, self.method.rollout
        return LearnedWorld(self.system, imagination, neighbourhood, share, segments, rollout, shortest)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps that one iteration takes: real ones, or every agent's in its local simulators."""
        return self.method.environments * self.method.rollout

    def init(self, key: PRNGKeyArray) -> TrainingState:
        """Fresh agents in freshly reset environments."""
        spec, method = self.system.spec, self.method
        topology, feedback = method.topology(self.system), method.feedback(self.system)
        kappa_actor, kappa_critic = method.kappas(spec)
        key, actor_key, critic_key, real_key, learned_key = jax.random.split(key, 5)
        acting, valuing = topology.neighbourhood(kappa_actor), topology.neighbourhood(kappa_critic)
        over = feedback.neighbourhood(kappa_critic)
        learner: LearnerState | RecurrentState
        if method.recurrent:
            remembering = RecurrentActors(
                spec, acting, method.recurrent, method.hidden, method.share, method.pass_memory, key=actor_key
            )
            learner = RecurrentPPO(method.learner).init(remembering, over)
        else:
            actors = Actors(spec, acting, method.hidden, method.share, key=actor_key)
            critics = Critics(spec, valuing, method.hidden, method.share, key=critic_key)
            learner = method.learner.init(actors, critics, over)
        real = self.real.init(real_key, learner.actors)
        learned = None
        if self.learned is not None:
            real_world: Any = self.real
            learned = self.learned.init(learned_key, real_world.like(key, learner.actors))
        state = TrainingState(key, jnp.zeros((), int), real, learned, learner)
        # Without weak types: otherwise the second iteration, whose input has none, would be compiled once more.
        return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype) if eqx.is_array(leaf) else leaf, state)

    def iterate(self, state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
        """Collect a little real experience, fit the world, practise in it."""
        return self.improve(state, *self.collect(state))

    def collect(self, state: TrainingState) -> tuple[Any, Trajectory]:
        """A little experience, and what it leaves the world in; compiled unless the system is hosted."""
        _, act_key, fit_key, _ = jax.random.split(state.key, 4)
        actors, steps = state.learner.actors, self.method.rollout
        return self.real.rollout(act_key, self.real.fit(fit_key, state.real, actors, steps), actors, steps)

    def improve(
        self, state: TrainingState, real: RealState | InfluenceState | HostedState, fresh: Trajectory
    ) -> tuple[TrainingState, dict[str, Array]]:
        """Fit models to fresh experience and practise in them, or learn from it as it is.

        Metrics: the losses, those of the models, and of the fresh batch ``return``, the mean over steps of the reward
        summed over agents, and ``lost``, the share of steps that lost an episode; then what the world says.
        """
        key, _, fit_key, learn_key = jax.random.split(state.key, 4)
        remaining = jnp.maximum(1 - state.iteration * (self.steps_per_iteration / self.steps), 0.0)
        learned = state.learned
        if self.learned is None or learned is None:
            improve: Any = RecurrentPPO(self.method.learner) if self.method.recurrent else self.method.learner
            learner, metrics = improve.update(learn_key, state.learner, fresh, remaining)
        else:
            assert isinstance(state.learner, LearnerState)  # agents with memory cannot practise in learned models
            learned, fitted = self.learned.fit(fit_key, learned, fresh)
            learner, metrics = self.practise(learn_key, learned, state.learner, fresh, remaining)
            metrics |= fitted
        metrics["return"] = fresh.reward.sum(-1).mean()
        metrics["lost"] = fresh.lost.any(-1).mean()
        metrics |= self.real.log(real)
        metrics["parameter_norm"] = optax.tree.norm(eqx.filter(learner.networks, eqx.is_inexact_array))
        return self.placed(TrainingState(key, state.iteration + 1, real, learned, learner)), metrics

    def practise(
        self,
        key: PRNGKeyArray,
        learned: LearnedState,
        learner: LearnerState,
        fresh: Trajectory,
        remaining: Float[Array, ""],
    ) -> tuple[LearnerState, dict[str, Array]]:
        """Rounds of learning, each on an imagined batch or, with a stated probability, on the fresh real one.

        While the models are not to be trusted there is a single round, on the real batch.
        """
        world, options, improve = self.learned, self.method.imagination, self.method.learner
        assert world is not None
        assert options is not None
        trusted = world.trusted(learned)
        rounds = jnp.where(trusted > 0, options.rounds, 1)
        dynamic, static = eqx.partition(learner, eqx.is_array)

        most = max(options.branches * options.branch_length, fresh.reward[..., 0].size)  # one size is compiled for both

        def prepared(learner: LearnerState, batch: Trajectory) -> tuple[LearnerState, Samples]:
            learner, samples = improve.prepare(learner, batch)
            return eqx.filter(learner, eqx.is_array), samples.repeated(most)

        def from_imagined(key: PRNGKeyArray, dynamic: LearnerState) -> tuple[LearnerState, Samples]:
            learner = eqx.combine(dynamic, static)
            return prepared(learner, world.rollout(key, learned, learner.actors))

        def from_real(_: PRNGKeyArray, dynamic: LearnerState) -> tuple[LearnerState, Samples]:
            return prepared(eqx.combine(dynamic, static), fresh)

        def one_round(index: Int[Array, ""], carry: tuple) -> tuple:
            dynamic, sums, imagined = carry
            coin_key, imagine_key, learn_key = jax.random.split(jax.random.fold_in(key, index), 3)
            imagine = (trusted > 0) & jax.random.bernoulli(coin_key, options.imagined_share)
            dynamic, samples = jax.lax.cond(imagine, from_imagined, from_real, imagine_key, dynamic)
            learner, metrics = improve.learn(learn_key, eqx.combine(dynamic, static), samples, remaining)
            return eqx.filter(learner, eqx.is_array), jax.tree.map(jnp.add, sums, metrics), imagined + imagine

        sums = dict.fromkeys(METRICS, jnp.zeros(()))
        dynamic, sums, imagined = jax.lax.fori_loop(0, rounds, one_round, (dynamic, sums, jnp.zeros((), int)))
        metrics = {name: total / rounds for name, total in sums.items()}
        gradient_steps = rounds * self.method.learner.epochs * self.method.learner.minibatches
        metrics |= {
            "branch_length": trusted.astype(float),
            "imagined_share": imagined / rounds,
            "gradient_steps_per_real_step": gradient_steps / self.steps_per_iteration,
        }
        return eqx.combine(dynamic, static), metrics

    def init_seeds(self, seeds: list[int]) -> TrainingState:
        """One independent state per seed, stacked."""
        return self.put(_quickly_compiled(eqx.filter_vmap(self.init))(_stacked_keys(seeds)))

    def like(self, seeds: list[int]) -> TrainingState:
        """Shapes and types of the seeds' states, stacked, without computing them."""
        return eqx.filter_eval_shape(eqx.filter_vmap(self.init), _stacked_keys(seeds))

    def put(self, state: TrainingState) -> TrainingState:
        """The state on every device, as an iteration leaves it: for any other, one more program would be compiled."""
        return put_everywhere(state, mesh(self.system.spec.n))

    def placed(self, state: TrainingState) -> TrainingState:
        """The same within an iteration."""
        return everywhere(state, mesh(self.system.spec.n))

    def compiled(self) -> Callable[[TrainingState], tuple[TrainingState, dict[str, Array]]]:
        """``iterate`` for stacked seeds, as one program.

        On a CPU the seeds take turns, which keeps one seed's weights and batch in the cache; elsewhere they go side by
        side, unless predictors of influence are to be refreshed now and then: side by side that would be done always.
        """

        if isinstance(self.system, HostedSystem):
            return self.hosted()

        def all_seeds(state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
            arrays, rest = eqx.partition(state, eqx.is_array)

            def one_seed(arrays: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
                state, metrics = self.iterate(eqx.combine(arrays, rest))
                return eqx.filter(state, eqx.is_array), metrics

            in_turn = jax.default_backend() == "cpu" or self.method.influence is not None
            together = None if in_turn else len(state.iteration)
            arrays, metrics = jax.lax.map(one_seed, arrays, batch_size=together)
            return self.placed(eqx.combine(arrays, rest)), metrics

        return eqx.filter_jit(all_seeds)

    def hosted(self) -> Callable[[TrainingState], tuple[TrainingState, dict[str, Array]]]:
        """``iterate`` for stacked seeds where workers collect: one seed after the other, its improvement compiled."""
        improve = eqx.filter_jit(self.improve)

        def all_seeds(state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
            arrays, rest = eqx.partition(state, eqx.is_array)
            outcomes = []
            for index in range(len(state.iteration)):
                seed = eqx.combine(jax.tree.map(lambda leaf, index=index: leaf[index], arrays), rest)
                following, metrics = improve(seed, *self.collect(seed))
                outcomes.append((eqx.filter(following, eqx.is_array), metrics))
            arrays, metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outcomes)
            return eqx.combine(arrays, rest), metrics

        return all_seeds


def _stacked_keys(seeds: list[int]) -> UInt32[Array, "seeds 2"]:
    return jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])  # plain arrays, which a file can hold


def _quickly_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``eqx.filter_jit`` for what runs once: XLA is done three times sooner, the program up to five times slower."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return eqx.filter_jit(function, compiler_options=options)  # type: ignore[call-overload]  # passed on to jax.jit
