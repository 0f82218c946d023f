"""Bounds: against numbers worked out by hand, the series added up term by term, and their limits; and `khop bounds`."""

from __future__ import annotations

import dataclasses
import json
from math import inf
from pathlib import Path

import numpy as np
import pytest

import khop
from khop import methods, theory
from khop.cli import main
from khop.run import METRICS, RunFolder
from khop.topology import Topology

# Three agents in a line, γ = ½: |N_i^0| = 1, 1, 1; |N_i^1| = 2, 3, 2; |N_i^k| = 3 from k = 2 on.
# Σ_k γ^{k+1} |N_i^k|, ends: ½ · 1 + ¼ · 2 + ¼ · 3 = 1.75, middle: ½ · 1 + ½ · 3 = 2; without k = 0: 1.25 and 1.5.
LINE = Topology.line(3)
HALF = {"gamma": 0.5, "r_max": 1.0}
ERRORS = {"model_error": 0.1, "policy_shift": 0.01}


def test_reach_by_hand() -> None:
    np.testing.assert_allclose(theory.discounted_reach(LINE, 0.5), [1.75, 2.0, 1.75])
    np.testing.assert_allclose(theory.discounted_reach(LINE, 0.5, 1), [1.25, 1.5, 1.25])


def test_theorem_1_by_hand() -> None:
    """2 r_max / (1 − γ) = 4; ends 0.01 + 0.12 · 1.75 = 0.22, middle 0.01 + 0.12 · 2 = 0.25, mean 0.23."""
    bound = theory.vanilla(LINE, **HALF, **ERRORS)
    assert bound.value == pytest.approx(0.92)
    assert bound.largest == pytest.approx(4.0)
    assert bound.share == pytest.approx(0.23)
    assert not bound.vacuous


def test_theorem_2_by_hand() -> None:
    """T = 1: 4 · (0.1 · 0.5 + 0.01 · (1.25 + 1.5 + 1.25) / 3)."""
    bound = theory.branched(LINE, **HALF, **ERRORS, branch_length=1)
    assert bound.value == pytest.approx(4 * (0.05 + 0.04 / 3))


def test_corollary_1_by_hand() -> None:
    """ξ = 0.2 adds 2 · ½ · 0.2 / ½² = 0.8; and in the setting of the published platoons 19 800, of 1000 possible."""
    bound = theory.branched_dependent(LINE, **HALF, **ERRORS, branch_length=1, xi=0.2)
    assert bound.value == pytest.approx(4 * (0.05 + 0.04 / 3) + 0.8)
    exact = {"model_error": 0.0, "policy_shift": 0.0}
    bound = theory.branched_dependent(LINE, gamma=0.99, r_max=5.0, **exact, branch_length=25, xi=0.2)
    assert bound.value == pytest.approx(19_800)
    assert bound.largest == pytest.approx(1000)
    assert bound.vacuous


def test_theorem_3_by_hand() -> None:
    assert theory.truncated_value(**HALF, kappa=2).value == pytest.approx(0.5)
    published = theory.truncated_value(gamma=0.99, r_max=5.0, kappa=2)
    assert published.value == pytest.approx(490.05)
    assert published.share == pytest.approx(0.9801)
    assert not published.vacuous
    assert theory.truncated_value(**HALF, kappa=0).vacuous
    assert theory.truncated_value(**HALF, kappa="all").value == 0.0


def test_theorem_4_by_hand() -> None:
    """κ = 1: ends, with 2 of 3 agents in reach, 1/½ · [1 − ¾ · ⅔] · 3 = 3; the middle 1/½ · [1 − ¾] · 3 = 1.5."""
    bound = theory.truncated_gradient(LINE, **HALF, kappa=1, g_max=3.0)
    assert bound.value == pytest.approx(3.0)
    assert not bound.vacuous
    assert theory.truncated_gradient(LINE, **HALF, kappa="all", g_max=3.0).value == 0.0
    # κ = 0, as printed: ½⁻¹ / ½ · [1 − ¾ · ⅓] = 3 of at most 2.
    assert theory.truncated_gradient(LINE, **HALF, kappa=0, g_max=1.0).value == pytest.approx(3.0)
    assert theory.truncated_gradient(LINE, gamma=0.0, r_max=1.0, kappa=0, g_max=1.0).value == inf
    assert theory.truncated_gradient(Topology.line(1), gamma=0.0, r_max=1.0, kappa=0, g_max=1.0).value == 0.0


def test_an_agent_errs_for_all_that_hear_it() -> None:
    """1 hears 0, γ = ½: what 0 gets wrong counts 1 for itself and ½ for 1; what 1 gets wrong for itself alone."""
    heard = Topology.from_edges(2, [(0, 1)], directed=True)
    np.testing.assert_allclose(theory.discounted_reach(heard, 0.5), [1.5, 1.0])
    shared = {"policy_shift": 0.0, "branch_length": inf}
    first = theory.branched(heard, **HALF, model_error=np.array([0.1, 0.0]), **shared)
    second = theory.branched(heard, **HALF, model_error=np.array([0.0, 0.1]), **shared)
    assert first.value == pytest.approx(1.5 * second.value) == pytest.approx(4 * 0.1 * 1.5 / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("start", [0, 1, 4, 30, inf])
@pytest.mark.parametrize(
    "topology",
    [Topology.line(6), Topology.ring(7), Topology.grid(3, 4), Topology.from_edges(5, [(0, 1), (3, 4)])],
    ids=["line", "ring", "grid", "islands"],
)
def test_the_series_added_up(topology: Topology, start: float, gamma: float) -> None:
    expected = np.zeros(topology.n)
    if start < inf:
        for k in range(int(start), 1000):
            expected += gamma ** (k + 1) * topology.neighbourhood(min(k, topology.n)).size
    np.testing.assert_allclose(theory.discounted_reach(topology, gamma, start), expected, rtol=1e-12, atol=1e-15)


def test_limits() -> None:
    """T = 0 leaves the policies' shift, T = ∞ the models' error; without ξ, Corollary 1 is Theorem 2."""
    ring = Topology.ring(9)
    reach = theory.discounted_reach(ring, 0.9).mean()
    setting = {"gamma": 0.9, "r_max": 2.0}
    assert theory.branched(ring, **setting, **ERRORS, branch_length=0).value == pytest.approx(40 * 0.01 * reach)
    forever = theory.branched(ring, **setting, **ERRORS, branch_length=inf)
    assert forever.value == pytest.approx(40 * 0.1 * reach)
    alone = theory.vanilla(ring, **setting, model_error=0.1, policy_shift=0.0)
    assert alone.value == pytest.approx(forever.value)
    for length in (0, 3, inf):
        independent = theory.branched(ring, **setting, **ERRORS, branch_length=length)
        dependent = theory.branched_dependent(ring, **setting, **ERRORS, branch_length=length, xi=0.0)
        assert dependent.value == independent.value
    perfect = theory.bounds(
        ring, **setting, kappa="all", branch_length=5, model_error=0.0, policy_shift=0.0, xi=0.0, g_max=1.0
    )
    assert [bound.value for bound in perfect] == [0.0] * 5


def test_one_agent_is_the_single_agent_bound() -> None:
    """2 γ r_max (ε_m + 2 ε_π) / (1 − γ)² + 2 r_max ε_π / (1 − γ)."""
    bound = theory.vanilla(Topology.line(1), gamma=0.9, r_max=2.0, **ERRORS)
    assert bound.value == pytest.approx(2 * 0.9 * 2 * 0.12 / 0.01 + 2 * 2 * 0.01 / 0.1)


def test_the_thresholds_that_the_page_prints() -> None:
    """One error alone makes a bound vacuous on a platoon of 8 vehicles: from what size on, see docs/theory.md."""
    setting = {"gamma": 0.99, "r_max": 500.0, "kappa": 2, "branch_length": 25, "g_max": 1.0}
    nothing = {"model_error": 0.0, "policy_shift": 0.0, "xi": 0.0}
    printed = {
        "Theorem 1": {"model_error": "0.0013", "policy_shift": "0.00065"},
        "Theorem 2": {"model_error": "0.0064", "policy_shift": "0.0016"},
        "Corollary 1": {"model_error": "0.0064", "policy_shift": "0.0016", "xi": "0.0101"},
    }
    page = (Path(__file__).parent.parent / "docs" / "theory.md").read_text()
    assert "| Theorem 1 | 0.0013 | 0.00065 | |" in page
    assert "| Theorem 2, Corollary 1 | 0.0064 | 0.0016 | 0.0101 |" in page
    for name, thresholds in printed.items():
        for error, threshold in thresholds.items():
            small = {**nothing, error: 1e-4}
            (bound,) = (b for b in theory.bounds(Topology.line(8), **setting, **small) if b.name == name)
            assert 1e-4 / bound.share == pytest.approx(float(threshold), rel=0.03)  # every bound is linear in it


def test_pinsker() -> None:
    assert theory.pinsker(0.02) == pytest.approx(0.1)
    assert theory.pinsker(0.0) == 0.0
    assert theory.pinsker(8.0) == 1.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gamma": 1.0}, "The discount must be at least 0 and below 1, not 1.0"),
        ({"gamma": -0.1}, "The discount"),
        ({"gamma": float("nan")}, "The discount"),
        ({"r_max": 0.0}, "R_max must be a finite number above 0"),
        ({"r_max": inf}, "R_max"),
        ({"model_error": -0.1}, "The model error is a total variation: one number from 0 to 1, or 3 of them"),
        ({"model_error": np.zeros(2)}, "The model error"),
        ({"model_error": float("nan")}, "The model error"),
        ({"policy_shift": 1.1}, "The policy shift is a total variation"),
        ({"branch_length": -1}, "The branch length must be a whole number"),
        ({"branch_length": 2.5}, "The branch length"),
        ({"xi": 1.5}, "Xi is a total variation: one number from 0 to 1, not"),
        ({"kappa": -1}, "Kappa must be an integer of at least 0"),
        ({"g_max": 0.0}, "G_max must be a finite number above 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(wrong: dict, words: str) -> None:
    setting = {**HALF, **ERRORS, "branch_length": 1, "xi": 0.0, "kappa": 1, "g_max": 1.0}
    with pytest.raises(khop.InputError, match=words):
        theory.bounds(LINE, **{**setting, **wrong})


def test_a_negative_divergence_is_refused() -> None:
    with pytest.raises(khop.InputError, match="divergence must be at least 0"):
        theory.pinsker(-1.0)


# The command ----------------------------------------------------------------------------------------------------------


def run_folder(path: Path, name: str, kl: tuple[float, ...] = (0.02, 0.0), **changes: object) -> list[str]:
    """The arguments to ask for the bounds of a run that was never trained, but logged some divergence."""
    platoon = khop.make("platoon-catchup", vehicles=3)
    method = methods.configured(methods.method(name), **changes).resolved(platoon.spec)
    config = {
        "system": {"name": "platoon-catchup", "parameters": {"vehicles": 3}},
        "method": {"name": name, "options": dataclasses.asdict(method)},
        "seeds": [0],
        "steps": 600,
    }
    folder = RunFolder.create(path / "run", json.loads(json.dumps(config)))
    if kl:
        folder.append(METRICS, [{"env_steps": step, "seed": 0, "kl": value} for step, value in enumerate(kl)])
    return ["bounds", str(folder.path)]


def test_the_bounds_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = run_folder(tmp_path, "mdpo")
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    setting = {"gamma": 0.99, "r_max": 500.0, "model_error": 0.0, "policy_shift": 0.1}
    assert "γ = 0.99, r_max = 500, κ = 4, T = 100, ε_m = 0, ε_π = 0.1, ξ = 0, g_max = 1" in shown
    assert f"{theory.branched(LINE, **setting, branch_length=100).value:,.4g}" in shown
    assert "Vacuous, as large as any difference can be: Theorem 1, Theorem 2, Corollary 1." in shown

    assert main([*arguments, "--policy-shift", "0", "--r-max", "2"]) == 0
    assert "No bound is vacuous." in capsys.readouterr().out
    assert main([*arguments, "--policy-shift", "0", "--xi", "0.5"]) == 0
    assert "can be: Corollary 1." in capsys.readouterr().out
    assert main([*arguments, "--policy-shift", "0", "--model-error", "0.5"]) == 0
    assert "can be: Theorem 1, Theorem 2, Corollary 1." in capsys.readouterr().out


def test_a_method_without_models_imagines_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run_folder(tmp_path, "cppo")) == 0
    assert "κ = all, T = 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kl", "changes", "options", "words"),
    [
        ("mpo-na", (0.1,), {}, [], "mpo-na hears strangers"),
        ("dppo", (0.1,), {"reward_limit": inf}, [], "give the largest size of one as --r-max"),
        ("dppo", (), {}, [], "has logged no divergence yet"),
        ("dppo", (0.1,), {}, ["--model-error", "2"], "The model error is a total variation"),
        ("dppo", (0.1,), {"discount": 1.0}, [], "The discount must be at least 0 and below 1"),
    ],
    ids=["strangers", "unlimited", "untrained", "impossible", "undiscounted"],
)
def test_what_has_no_bounds(
    name: str,
    kl: tuple[float, ...],
    changes: dict[str, object],
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*run_folder(tmp_path, name, kl, **changes), *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
