"""Pictures of loops: what is drawn is what was driven."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from khop.report.style import styled
from khop.system import Episode
from khop.systems.loops.figure import EVERY, animate, loop_figure
from khop.systems.loops.ring import course

STEPS, VEHICLES, LENGTH = 200, 3, 100.0


def driven(crash_at: int | None = None) -> Episode:
    """Three vehicles at 4 m/s, which stand from a crash on."""
    moving = np.arange(STEPS) < (STEPS if crash_at is None else crash_at)
    speed = np.where(moving, 4.0, 0.0)[:, None] * np.ones(VEHICLES)
    start = np.array([60.0, 30.0, 0.0])
    info = {
        "speed": speed,
        "position": (start + 0.1 * np.cumsum(speed, axis=0)) % LENGTH,
        "gap": np.full((STEPS, VEHICLES), 25.0),
        "length": np.full(STEPS, LENGTH),
        "crashed": ~moving,
    }
    none = np.zeros((STEPS, VEHICLES))
    parts = (none[..., None], none[..., None], none, info, np.ones(STEPS, bool))
    return Episode(*jax.tree.map(jnp.asarray, parts))


def test_the_space_time_diagram_follows_every_vehicle() -> None:
    with styled():
        figure = loop_figure({"smooth": driven(), "crash": driven(100)}, 0.1)
    smooth, crash = figure.axes[:2]
    (lines,) = (item for item in smooth.collections if isinstance(item, LineCollection))
    segments = np.array(lines.get_segments())
    slope = (segments[:, 1, 1] - segments[:, 0, 1]) / (segments[:, 1, 0] - segments[:, 0, 0])
    np.testing.assert_allclose(slope, 4.0, rtol=1e-3)
    assert len(segments) == VEHICLES * (STEPS // EVERY - 1) - 2  # two of them end a lap, which is no segment
    assert smooth.get_ylim() == (0, LENGTH)
    assert [text.get_text() for text in crash.texts] == [" collision"]
    assert "smooth" in smooth.get_title(loc="left")


def test_the_animation_is_written(tmp_path: Path) -> None:
    with styled():
        out = animate({"ring": driven()}, {"ring": course(LENGTH)}, tmp_path / "new" / "loop.gif", 0.1, every=50)
    assert imread(out).shape[2] >= 3
    assert out.stat().st_size > 1000
