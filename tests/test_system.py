"""What every system has to keep: registered ones and the toys alike. A new system is covered once it is registered.

Hosted systems, which have no state to hand out, are held to the same in tests/hosts/test_hosted_systems.py.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, Rooms, with_random_weights

import khop
from khop.agents.policies import Actors
from khop.errors import InputError
from khop.evaluation import controller, play
from khop.hosts.system import HostedSystem
from khop.system import DiscreteActions, Episode, Step, System, step_and_reset, system_class
from khop.systems.microgrid.system import Microgrid

SMALL = {  # parameters that make a system quick to test; what is not listed runs with its defaults
    "platoon-catchup": {"vehicles": 4, "horizon": 40},
    "platoon-slowdown": {"vehicles": 4, "horizon": 40},
    "grid-33": {"horizon": 8},
    "grid-141": {"horizon": 8},
    "grid-322": {"horizon": 8},
    "grid-421": {"horizon": 8},
    "grid-own": {"horizon": 8},
    "microgrid-20": {"continuous": True},
    "microgrid-40": {"as_published": True},
    "warehouse": {"side": 2, "horizon": 40},
    "ring": {"vehicles": 22, "controlled": 4, "horizon": 40, "warmup": 50},
    "figure-eight": {"vehicles": 6, "controlled": 4, "horizon": 40, "warmup": 50},
}
SIBLINGS = {"grid-141", "grid-322", "grid-421", "microgrid-40"}  # only their tables differ from a smaller system's
COMPILED = [name for name, cls in khop.registered().items() if not issubclass(cls, HostedSystem)]
CLOSE = 1e-4  # between two ways to compile the same float32 operations
CANCELLING = 5e-3  # the same for microgrids, whose currents are small differences of hundreds of volts on stiff lines


class Played(NamedTuple):
    """A few episodes of random actions, each started anew as the one before it ends; leaves lead with T."""

    state: eqx.Module  # before the step
    acted_on: jax.Array  # the observations before the step
    action: jax.Array
    step: Step


def play_on(system: System, key: jax.Array, steps: int) -> Played:
    def act(moment: tuple, key: jax.Array) -> tuple[tuple, Played]:
        state, obs = moment
        action_key, step_key = jax.random.split(key)
        action = system.spec.action.sample(action_key)
        following, next_obs, step = step_and_reset(system, step_key, state, action)
        return (following, next_obs), Played(state, obs, action, step)

    reset_key, run_key = jax.random.split(key)
    return jax.lax.scan(act, system.reset(reset_key), jax.random.split(run_key, steps))[1]


@pytest.fixture(scope="module", params=[*COMPILED, *TOYS])
def system(request: pytest.FixtureRequest) -> System:
    name = request.param
    return TOYS[name]() if name in TOYS else khop.make(name, **SMALL.get(name, {}))


play_alone = eqx.filter_jit(play_on)
play_episode = eqx.filter_jit(play)
reset = eqx.filter_jit(lambda system, key: system.reset(key))
take_step = eqx.filter_jit(lambda system, key, state, action: system.step(key, state, action))
traced: list[type[System]] = []


@eqx.filter_jit
def take_step_and_reset(system: System, key: jax.Array, state: eqx.Module, action: jax.Array, cut: jax.Array) -> tuple:
    traced.append(type(system))
    return step_and_reset(system, key, state, action, cut)


@pytest.fixture(scope="module")
def played(system: System) -> Played:
    """Three horizons of random actions."""
    return play_alone(system, jax.random.key(0), 3 * system.spec.horizon)


@pytest.fixture(scope="module")
def start(system: System) -> tuple:
    return reset(system, jax.random.key(1))


def assert_close(system: System, left: object, right: object) -> None:
    """Element by element; where digits cancel, relative to the largest element."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    share = CANCELLING if isinstance(system, Microgrid) else 0.0

    def close(a: np.ndarray, b: np.ndarray) -> None:
        largest = np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=CLOSE, atol=max(CLOSE, share * largest))

    jax.tree.map(close, left, right)


def skip_siblings(system: System) -> None:
    if type(system) in map(system_class, SIBLINGS):
        pytest.skip("its smaller sibling runs the same code")


def types(tree: object) -> object:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# Spec


def test_the_spec_fits_itself(system: System) -> None:
    spec = system.spec
    assert system.topology is system.topology
    assert system.topology.n == spec.n
    assert np.shape(spec.observation_sizes) == (spec.n,)
    assert np.all(np.asarray(spec.observation_sizes) >= 1)
    assert np.max(spec.observation_sizes) == spec.d == len(spec.observation_units)
    assert spec.horizon >= 1
    assert spec.control_interval_s > 0
    assert "return" in spec.metrics
    assert len(set(spec.baselines)) == len(spec.baselines)
    assert "random" not in spec.baselines
    for kappa in (spec.kappa_actor, spec.kappa_critic):
        assert system.topology.neighbourhood(kappa).n == spec.n


def test_the_action_sets_fit_the_spec(system: System) -> None:
    action = system.spec.action
    if isinstance(action, DiscreteActions):
        assert np.shape(action.sizes) == (system.spec.n,)
        assert np.min(action.sizes) >= 1
        assert action.mask.shape == (system.spec.n, action.width) == (system.spec.n, len(action.names))
        np.testing.assert_array_equal(action.mask.sum(1), action.sizes)
    else:
        assert np.shape(action.low) == np.shape(action.high) == (system.spec.n, action.width)
        assert action.width == len(action.names) == len(action.units)
        assert np.all(np.isfinite(action.low) & np.isfinite(action.high) & (action.low < action.high))


def test_arrays_fit_the_spec(system: System, start: tuple, played: Played) -> None:
    n, d, T = system.spec.n, system.spec.d, 3 * system.spec.horizon
    state, obs = start
    assert types(obs) == ((n, d), jnp.float32)
    assert types(played.acted_on) == types(played.step.obs) == ((T, n, d), jnp.float32)
    assert types(played.step.reward) == ((T, n), jnp.float32)
    assert types(played.step.terminated) == ((T, n), bool)
    assert types(played.step.truncated) == ((T,), bool)
    step = jax.eval_shape(system.step, jax.random.key(0), state, system.spec.action.sample(jax.random.key(0)))
    assert jax.tree.structure(step.state) == jax.tree.structure(state)
    assert types(step.state) == types(state)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(state))


def test_metrics_are_those_of_the_spec(system: System, played: Played) -> None:
    first = jax.tree.map(lambda leaf: leaf[: system.spec.horizon], played)
    done = jnp.cumsum(first.step.truncated | first.step.terminated.all(-1))
    valid = jnp.roll(done, 1).at[0].set(0) == 0
    metrics = jax.jit(system.metrics)(Episode(first.acted_on, first.action, first.step.reward, first.step.info, valid))
    assert metrics.keys() == system.spec.metrics.keys()
    for name, value in metrics.items():
        assert types(value) == ((), jnp.float32), name
        assert np.isfinite(value), name


def test_every_baseline_drives_the_system(system: System) -> None:
    for name in system.spec.baselines:
        episode = play_episode(system, controller(system, name), jax.random.key(3))
        assert_possible(system, episode.action)
        assert np.all(np.isfinite(episode.reward)), name


def test_an_unknown_baseline_is_refused(system: System) -> None:
    with pytest.raises(InputError, match="Unknown baseline 'no such thing'"):
        system.baseline("no such thing")


# Actions


def assert_possible(system: System, action: jax.Array) -> None:
    allowed = system.spec.action
    if isinstance(allowed, DiscreteActions):
        assert jnp.issubdtype(action.dtype, jnp.integer)
        assert np.all((action >= 0) & (action < np.asarray(allowed.sizes)))
    else:
        assert np.all((action >= allowed.low) & (action <= allowed.high))


def test_random_actions_fill_each_agents_own_set(system: System) -> None:
    """Also: no masked action is ever sampled."""
    allowed = system.spec.action
    actions = jax.vmap(allowed.sample)(jax.random.split(jax.random.key(4), 2000))
    assert_possible(system, actions)
    if isinstance(allowed, DiscreteActions):
        for agent, size in enumerate(allowed.sizes):
            assert set(np.unique(actions[:, agent])) == set(range(size))
    else:
        width = allowed.high - allowed.low
        np.testing.assert_array_less(actions.min(0), allowed.low + 0.02 * width)
        np.testing.assert_array_less(allowed.high - 0.02 * width, actions.max(0))


def test_policies_sample_possible_actions_alone(system: System, played: Played) -> None:
    hood = system.topology.neighbourhood(system.spec.kappa_actor)
    actors = with_random_weights(lambda key: Actors(system.spec, hood, (8,), share=False, key=key))
    distribution = eqx.filter_jit(actors)((), played.acted_on)[1]
    assert_possible(system, distribution.mode())
    assert_possible(system, distribution.sample(jax.random.key(6)))


# Dynamics


def test_nothing_is_ever_infinite_or_not_a_number(played: Played) -> None:
    for leaf in jax.tree.leaves(played):
        assert np.all(np.isfinite(leaf))


def test_observation_padding_is_exactly_zero(system: System, played: Played) -> None:
    padding = np.arange(system.spec.d) >= np.asarray(system.spec.observation_sizes)[:, None]
    for obs in (played.acted_on, played.step.obs):
        assert np.all(np.asarray(obs)[:, padding] == 0)


def test_the_same_key_gives_the_same_episodes(system: System, played: Played) -> None:
    again = play_alone(system, jax.random.key(0), len(played.action))
    jax.tree.map(np.testing.assert_array_equal, again, played)


def test_compiled_equals_eager(system: System, start: tuple) -> None:
    skip_siblings(system)
    assert_close(system, system.reset(jax.random.key(1)), start)
    state, _ = start
    for key in jax.random.split(jax.random.key(7), 2):
        action = system.spec.action.sample(key)
        with jax.disable_jit():
            eager = system.step(key, state, action)
        assert_close(system, take_step(system, key, state, action), eager)
        state = eager.state


def test_seven_environments_at_once_equal_seven_alone(system: System) -> None:
    """Also: nothing random can hide in what was compiled, for the two programs were traced apart."""
    skip_siblings(system)
    keys = jax.random.split(jax.random.key(8), 7)
    steps = 3 * system.spec.horizon
    together = jax.jit(jax.vmap(lambda key: play_on(system, key, steps)))(keys)
    for index, key in enumerate(keys):
        row = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert_close(system, *jax.tree.map(lambda leaf: leaf[:60], (row, play_alone(system, key, steps))))


def test_a_step_is_traced_once(system: System) -> None:
    """Whatever the values: of a reset state, of a step's state, of a new episode's state."""
    for seed in (0, 1):
        state, _ = reset(system, jax.random.key(seed))
        for key in jax.random.split(jax.random.key(seed), system.spec.horizon + 2):
            action = system.spec.action.sample(key)
            state, _, _ = take_step_and_reset(system, key, state, action, jnp.asarray(False))
    assert traced.count(type(system)) == 1


# Ends


def test_the_horizon_truncates_and_nothing_else_does(system: System, played: Played) -> None:
    """Unless all agents terminate before, an episode lasts exactly ``horizon`` steps; then the next one begins."""
    age = 0
    for truncated, terminated in zip(*map(np.asarray, (played.step.truncated, played.step.terminated)), strict=True):
        age += 1
        assert truncated == (age == system.spec.horizon)
        age = 0 if truncated or terminated.all() else age


def test_the_final_observation_is_kept_and_a_new_episode_begins(system: System, played: Played) -> None:
    done = np.asarray(played.step.truncated | played.step.terminated.all(-1))
    assert done.sum() >= 3
    going_on = ~done[:-1]
    np.testing.assert_array_equal(played.acted_on[1:][going_on], played.step.obs[:-1][going_on])

    last = int(np.flatnonzero(done)[0])
    state, action = jax.tree.map(lambda leaf: leaf[last], (played.state, played.action))
    key = jax.random.key(9)
    step_key, reset_key = jax.random.split(key)
    following, obs, step = take_step_and_reset(system, key, state, action, jnp.asarray(False))
    assert step.done
    assert_close(system, step, take_step(system, step_key, state, action))
    assert_close(system, (following, obs), reset(system, reset_key))
    assert not np.allclose(obs, step.obs, rtol=CLOSE, atol=CLOSE)


def test_a_cut_truncates_and_changes_nothing_else(system: System, start: tuple) -> None:
    state, _ = start
    key, action = jax.random.key(10), system.spec.action.sample(jax.random.key(11))
    step_key, reset_key = jax.random.split(key)
    uncut = take_step(system, step_key, state, action)
    for cut in (True, False):
        following, obs, step = take_step_and_reset(system, key, state, action, jnp.asarray(cut))
        assert step.truncated == step.done == cut
        assert_close(system, step, eqx.tree_at(lambda s: s.truncated, uncut, jnp.asarray(cut)))
        assert_close(system, (following, obs), reset(system, reset_key) if cut else (uncut.state, uncut.obs))


def test_an_episode_ends_early_once_all_agents_have_terminated() -> None:
    """Broken rooms stay broken, and one that is not keeps the episode alive."""
    system = Rooms()
    state, _ = system.reset(jax.random.key(12))
    for broken in ([True, True, False, True], [True, True, True, True]):
        state = eqx.tree_at(lambda s: s.broken, state, jnp.array(broken))
        following, _, step = step_and_reset(system, jax.random.key(13), state, jnp.zeros((4, 2)))
        assert not step.truncated
        np.testing.assert_array_equal(step.terminated, broken)
        assert step.done == all(broken)
        assert following.time == (0 if all(broken) else 1)


def test_metrics_stop_at_the_end_of_the_episode() -> None:
    """The mean is over the steps that were played, not over the horizon."""
    system = Rooms()
    valid = jnp.arange(12) < 3
    reward = jnp.where(valid[:, None], -1.0, -100.0) * jnp.ones((12, 4))
    info = {"broken": jnp.zeros((12, 4), bool)}
    episode = Episode(jnp.zeros((12, 4, 3)), jnp.zeros((12, 4, 2)), reward, info, valid)
    assert system.metrics(episode)["return"] == -4.0
