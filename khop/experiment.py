"""Runs: training with a folder, progress, checkpoints and evaluations around the compiled loop.

Everything here happens between compiled iterations, so that none of it can change what is learned.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from khop import methods
from khop.errors import InputError, unknown
from khop.evaluation import (
    Learned,
    Summary,
    Table,
    episode_keys,
    evaluate_baselines,
    measure_seeds,
    summarise,
)
from khop.interruption import Interruption
from khop.methods import Method
from khop.run import EVALUATION, METRICS, RunFolder
from khop.system import Controller, System, make, name_of
from khop.training import Training, TrainingState

LEARNED, SAMPLED = "learned", "learned-sampled"
EVALUATION_POINTS = 20
EVALUATION_SHARE = 0.25  # of the steps of training in a simulator outside: evaluations take at most so many on the way
CHECKPOINT_SECONDS = 60.0


class Diverged(RuntimeError):
    """A loss or a parameter became NaN or infinite."""


class Stopped(RuntimeError):
    """Training was interrupted; the run can be resumed."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a watcher of a run is told after each iteration."""

    folder: Path
    seeds: list[int]
    env_steps: int
    total: int
    wall_s: float
    metrics: dict[str, Float[np.ndarray, " seeds"]]


Watcher = Callable[[Progress], None]


class Run:
    """A run on disk: its trained agents, and what can be asked of them."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.config = folder.config()
        try:
            self.system_name: str = self.config["system"]["name"]
            self.system: System = make(self.system_name, **self.config["system"]["parameters"])
            self.method = methods.restored(self.config["method"]["options"])
            self.seeds: list[int] = self.config["seeds"]
            self.steps: int = self.config["steps"]
        except KeyError as error:
            raise InputError(f"{folder.config_file} lacks the entry {error}: restore it from a copy.") from error
        self.training = Training(self.system, self.method, self.steps)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint of this run has to carry."""
        return {key: self.config[key] for key in ("system", "method", "seeds")}

    @functools.cached_property
    def _newest(self) -> tuple[TrainingState, int]:
        if not self.folder.saved() and not self.folder.read(METRICS):  # stopped before its first checkpoint
            return self.training.init_seeds(self.seeds), 0
        like = self.training.like(self.seeds)
        return self.folder.load(self.folder.newest(self.origin), like)

    @property
    def env_steps(self) -> int:
        """Real environment steps behind the newest checkpoint, per seed."""
        return self._newest[1]

    def final_evaluation(self) -> list[dict[str, str]]:
        """The rows of evaluation.csv at the run's last step."""
        return [row for row in self.folder.read(EVALUATION) if int(row["env_steps"]) >= self.steps]

    def final_table(self) -> Table:
        """The evaluation that ended the run: every controller over the same episodes, learned ones over all seeds."""
        pooled: dict[str, dict[str, list[Summary]]] = {}
        for row in self.final_evaluation():
            summary = Summary(float(row["mean"]), float(row["std"]), int(row["n"]))
            pooled.setdefault(row["controller"], {}).setdefault(row["metric"], []).append(summary)
        return {
            name: {metric: Summary.pooled(parts) for metric, parts in metrics.items()}
            for name, metrics in pooled.items()
        }

    def controller(self, greedy: bool = True, seed: int | None = None) -> Controller:
        """The trained agents of one seed as a controller for ``khop.evaluation``."""
        return Learned(self.actors(seed), jnp.asarray(greedy))

    def policy(self, obs: Float[Array, "*batch n d"], seed: int | None = None) -> Array:
        """Every agent's greedy action, (*batch, n) or (*batch, n, a), by the agents of one of the run's seeds."""
        spec = self.system.spec
        if jnp.shape(obs)[-2:] != (spec.n, spec.d):
            raise InputError(f"Observations must have shape (..., {spec.n}, {spec.d}), not {jnp.shape(obs)}.")
        if self.method.recurrent:
            raise InputError("These agents remember: use run.controller(), which carries their memory along.")
        _, distribution = self.actors(seed)((), jnp.asarray(obs))
        return distribution.mode()

    def actors(self, seed: int | None = None) -> Any:
        """The trained actors of one seed, by default the first."""
        which, actors = self._place(seed), self._newest[0].learner.actors
        return jax.tree.map(lambda leaf: leaf[which] if eqx.is_array(leaf) else leaf, actors)

    def model_error(self, seed: int | None = None) -> Float[np.ndarray, "H n"]:
        """Held-out error of every agent's local models 1, 2, … H steps ahead, as shares of the variance of the change.

        Of the newest checkpoint and one seed, by default the first; 1 where nothing is known yet.

        Raises:
            InputError: if these agents learn no models.
        """
        which, learned = self._place(seed), self._newest[0].learned
        if learned is None:
            raise InputError(f"{self.method.name} learns no models whose error could be told.")
        return np.asarray(learned.error[which])

    def _place(self, seed: int | None) -> int:
        """Where a seed stands among the run's; the first if none is named."""
        if seed is not None and seed not in self.seeds:
            raise InputError(f"This run has no seed {seed}: choose from {', '.join(map(str, self.seeds))}.")
        return 0 if seed is None else self.seeds.index(seed)

    def evaluate(self, episodes: int = 20, controllers: Sequence[str] | None = None, seed: int = 0) -> Table:
        """Learned and classical controllers over the same episodes of the real system.

        Args:
            episodes: per controller (and per training seed, for the learned ones).
            controllers: ``learned``, ``learned-sampled``, ``random`` or baselines; all of them by default.
            seed: which episodes.
        """
        if episodes < 1:
            raise InputError(f"episodes must be at least 1, not {episodes}.")
        everything = [LEARNED, SAMPLED, "random", *self.system.spec.baselines]
        names = list(everything if controllers is None else controllers)
        table: Table = {}
        for name in names:
            if name in (LEARNED, SAMPLED):
                actors, greedy = self._newest[0].learner.actors, jnp.asarray(name == LEARNED)
                values = measure_seeds(self.system, actors, greedy, episode_keys(seed, episodes))
                table[name] = summarise(values)
            else:
                try:
                    table |= evaluate_baselines(self.system, [name], episodes, seed)
                except InputError as error:
                    raise (unknown("controller", name, everything) if "baseline" in str(error) else error) from None
        return table


def train(
    system: str | System,
    method: str | Method,
    *,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    episodes: int = 20,
    watchers: Sequence[Watcher] = (),
    **options: Any,
) -> Run:
    """Train agents and keep everything in a folder.

    Args:
        system: a registered name or a system whose class is registered.
        method: a name in ``khop.methods.METHODS`` or a ``Method``.
        steps: real environment steps per seed, rounded up to whole iterations; by default 600,000, 30,000 for methods
            that learn models, and 1,000,000 for agents with memory. In local simulators: every agent's own steps.
        seeds: one independent learner each; all train in one program.
        out: the run's folder, new or empty; by default one under ``runs/``.
        episodes: of each evaluation.
        watchers: called after each iteration.
        options: fields of ``Method`` or ``PPO`` to set, e.g. ``kappa_critic=3, clip=0.1``.

    Raises:
        InputError: before anything is written, if an input cannot be used.
        Stopped: on SIGINT or SIGTERM, after writing a checkpoint.
        Diverged: on NaN or infinity, with the last good checkpoint kept.
    """
    system = make(system) if isinstance(system, str) else system
    system_name = name_of(system)
    chosen = methods.method(method) if isinstance(method, str) else method
    chosen = methods.configured(chosen, **options).resolved(system.spec)
    for kappa in chosen.kappas(system.spec):
        system.topology.neighbourhood(kappa)
    seeds = _checked_seeds(seeds)
    steps = chosen.usual_steps if steps is None else steps
    _at_least("steps", steps, 1)
    _at_least("episodes", episodes, 1)
    config = {
        "system": {"name": system_name, "parameters": _parameters(system)},
        "method": {"name": chosen.name, "options": dataclasses.asdict(chosen)},
        "seeds": seeds,
        "steps": steps,
        "episodes": episodes,
        "evaluate_every": _evaluate_every(system, steps, episodes),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": _versions(),
    }
    config = json.loads(json.dumps(config))
    short_name = system_name.rpartition(":")[2]
    out = Path("runs") / f"{short_name}-{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}" if out is None else Path(out)
    RunFolder.refuse_occupied(out)
    state = Training(system, chosen, steps).init_seeds(seeds)
    run = Run(RunFolder.create(out, config))
    with run.folder.held():
        run.folder.save(state, 0, run.origin)
        return _continue(run, state, 0, watchers)


def resume(path: str | Path, steps: int | None = None, watchers: Sequence[Watcher] = ()) -> Run:
    """Continue a run from its newest checkpoint, to the same result as if it had never stopped.

    Args:
        path: the run's folder.
        steps: a larger budget than the run was started with, to train it further.
        watchers: called after each iteration.
    """
    run = load(path)
    with run.folder.held():
        state, env_steps = run._newest
        if steps is not None:
            _at_least("steps", steps, env_steps)
            run.folder.update_config(steps=steps)
            run = load(path)
        run.folder.forget_after(env_steps)
        return _continue(run, state, env_steps, watchers)


def load(path: str | Path) -> Run:
    """A run from its folder."""
    return Run(RunFolder.open(path))


def _evaluate_every(system: System, steps: int, episodes: int) -> int:
    """Steps of training between two evaluations, greedy and sampled: more where they are played in a simulator outside,
    which takes as long over them as over what is learned from, and whose training episodes are measured anyway.
    """
    points = EVALUATION_POINTS
    if system.spec.whole_episodes:
        points = min(points, int(EVALUATION_SHARE * steps) // (2 * episodes * system.spec.horizon))
    return max(steps // max(points, 1), 1)


def _continue(run: Run, state: TrainingState, env_steps: int, watchers: Sequence[Watcher]) -> Run:
    """Train from a state to the run's budget."""
    iterate, state = run.training.compiled(), run.training.put(state)
    every = run.config["evaluate_every"]
    past = run.folder.read(METRICS)
    started = time.monotonic() - (float(past[-1]["wall_s"]) if past else 0.0)
    last_save = time.monotonic()
    saved_at = env_steps
    with Interruption() as interruption:
        while env_steps < run.steps:
            following, on_device = iterate(state)
            metrics = {name: np.asarray(value) for name, value in on_device.items()}
            if blame := _divergence(metrics, run.seeds):
                if saved_at < env_steps:
                    run.folder.save(state, env_steps, run.origin)
                raise Diverged(
                    f"Training diverged: {blame} after {env_steps} steps; the last good state, of step {env_steps}, "
                    f"is in {run.folder.checkpoints}: train again with a smaller learning rate or max_gradient_norm."
                )
            state = following
            env_steps += run.training.steps_per_iteration
            wall_s = time.monotonic() - started
            run.folder.append(METRICS, _metric_rows(metrics, run.seeds, env_steps, wall_s))
            for watcher in watchers:
                watcher(Progress(run.path, run.seeds, env_steps, run.steps, wall_s, metrics))
            crossed = env_steps // every > (env_steps - run.training.steps_per_iteration) // every
            if crossed and env_steps < run.steps:
                run.folder.append(EVALUATION, _learned_rows(run, state, env_steps))
            if crossed or interruption.signal_number or time.monotonic() - last_save > CHECKPOINT_SECONDS:
                run.folder.save(state, env_steps, run.origin)
                saved_at, last_save = env_steps, time.monotonic()
            if interruption.signal_number:
                raise Stopped(
                    f"Stopped at step {env_steps} of {run.steps}; continue with `khop resume {run.path}`.",
                    interruption.signal_number,
                )
    if saved_at < env_steps:
        run.folder.save(state, env_steps, run.origin)
    run = load(run.path)
    if not any(row["controller"] == "random" for row in run.final_evaluation()):
        run.folder.append(EVALUATION, [*_learned_rows(run, state, env_steps), *_baseline_rows(run, env_steps)])
    return run


def _learned_rows(run: Run, state: TrainingState, env_steps: int) -> list[dict[str, Any]]:
    """Evaluation rows of every seed's agents, greedy and sampled."""
    keys = episode_keys(0, run.config["episodes"])
    rows = []
    for name in (LEARNED, SAMPLED):
        values = measure_seeds(run.system, state.learner.actors, jnp.asarray(name == LEARNED), keys)
        for index, seed in enumerate(run.seeds):
            rows += _rows(env_steps, seed, name, summarise({metric: v[index] for metric, v in values.items()}))
    return rows


def _baseline_rows(run: Run, env_steps: int) -> list[dict[str, Any]]:
    """Evaluation rows of random and the system's own controllers, which have no seed."""
    table = evaluate_baselines(run.system, ["random", *run.system.spec.baselines], run.config["episodes"])
    return [row for name, summaries in table.items() for row in _rows(env_steps, "", name, summaries)]


def _rows(env_steps: int, seed: int | str, name: str, summaries: dict[str, Summary]) -> list[dict[str, Any]]:
    return [
        {"env_steps": env_steps, "seed": seed, "controller": name, "metric": metric, **dataclasses.asdict(summary)}
        for metric, summary in summaries.items()
    ]


def _metric_rows(
    metrics: dict[str, np.ndarray], seeds: list[int], env_steps: int, wall_s: float
) -> list[dict[str, Any]]:
    return [
        {"env_steps": env_steps, "wall_s": f"{wall_s:.3f}", "seed": seed}
        | {name: f"{values[index]:.8g}" for name, values in sorted(metrics.items())}
        for index, seed in enumerate(seeds)
    ]


def _divergence(metrics: dict[str, np.ndarray], seeds: list[int]) -> str:
    """Which metric of which seed is no finite number; empty if all are."""
    for name, values in metrics.items():
        for seed, value in zip(seeds, values, strict=True):
            if not np.isfinite(value):
                return f"{name} became {value} for seed {seed}"
    return ""


def _parameters(system: System) -> dict[str, Any]:
    parameters = {field.name: getattr(system, field.name) for field in dataclasses.fields(system) if field.init}
    try:
        json.dumps(parameters)
    except TypeError as error:
        raise InputError(f"The parameters of a system must fit into JSON (numbers, texts, lists): {error}.") from error
    return parameters


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    seeds = [int(seed) for seed in seeds]
    if not seeds or min(seeds) < 0:
        raise InputError(f"seeds must be one or more whole numbers of at least 0, not {seeds}.")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must differ from each other, not {seeds}.")
    return seeds


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {value}.")


def _versions() -> dict[str, str]:
    packages = ["khop", "jax", "jaxlib", "equinox", "optax", "numpy"]
    packages += ["libsumo"] if importlib.util.find_spec("libsumo") else []
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {jax.devices()[0].platform}",
        **{package: importlib.metadata.version(package) for package in packages},
    }
