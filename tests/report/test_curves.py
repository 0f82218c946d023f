"""Learning curves from hand-written run folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from khop.errors import InputError
from khop.report.curves import learning_curves
from khop.report.history import interval, read_lines


def write_run(folder: Path, returns: dict[int, list[float]], method: str = "dppo", finished: bool = True) -> Path:
    """A run folder as training leaves it: for every seed, evaluated returns at steps 100, 200, …"""
    folder.mkdir()
    config = {
        "system": {"name": "platoon-catchup", "parameters": {}},
        "method": {"name": method, "options": {"kappa_critic": 2, "learner": {"clip": 0.2}}},
        "seeds": list(returns),
        "steps": 300,
        "evaluate_every": 100,
    }
    (folder / "config.json").write_text(json.dumps(config))
    evaluation, metrics = ["env_steps,seed,controller,metric,mean,std,n"], ["env_steps,wall_s,seed,entropy,kl"]
    for seed, course in returns.items():
        for point, value in enumerate(course, 1):
            evaluation += [f"{100 * point},{seed},{name},return,{value},1,2" for name in ("learned", "learned-sampled")]
            metrics.append(f"{100 * point},{point},{seed},{1 / point},0.01")
    if finished:
        evaluation += [f"300,,{name},return,{value},1,2" for name, value in (("random", -900), ("best-constant", -30))]
    (folder / "evaluation.csv").write_text("\n".join(evaluation) + "\n")
    (folder / "metrics.csv").write_text("\n".join(metrics) + "\n")
    return folder


def test_interval_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=(6, 2))
    low, high = interval(values)
    for point in range(2):
        expected = stats.bootstrap(
            (values[:, point],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        np.testing.assert_allclose([low[point], high[point]], expected, atol=0.05)


def test_runs_that_differ_in_seeds_alone_are_one_line(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {0: [-900.0, -50.0, -40.0]})
    second = write_run(tmp_path / "b", {1: [-700.0, -70.0, -20.0]})
    other = write_run(tmp_path / "c", {0: [-800.0, -60.0, -50.0]}, method="ippo")
    lines = read_lines([first, second, other])
    assert [line.seeds for line in lines] == [{"0", "1"}, {"0"}]
    np.testing.assert_allclose(lines[0].returns("learned").mean, [-800.0, -60.0, -30.0])
    assert lines[0].baselines == {"random": -900.0, "best-constant": -30.0}


@pytest.mark.parametrize("finished", [True, False])
def test_a_figure_is_drawn_during_and_after_a_run(tmp_path: Path, finished: bool) -> None:
    run = write_run(tmp_path / "run", {0: [-900.0, -50.0, -40.0], 3: [-800.0, -60.0, -20.0]}, finished=finished)
    assert learning_curves([run], tmp_path / "curves.png").stat().st_size > 10_000


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        learning_curves([tmp_path], tmp_path / "curves.png")
    young = write_run(tmp_path / "young", {0: []}, finished=False)
    with pytest.raises(InputError, match="no evaluation yet"):
        learning_curves([young], tmp_path / "curves.png")
    with pytest.raises(InputError, match="no format for figures"):
        learning_curves([young], tmp_path / "curves.xyz")
    assert not list(tmp_path.glob("curves*"))
