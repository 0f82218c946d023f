"""Worker processes: they do what an engine in this process does, and survive whatever happens to one of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from drifters import LAYOUT, engine
from drifting import Drifting

from khop.hosts import worker
from khop.hosts.pool import Pool

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(engine(fail_at=2, how="raise", only_seed=13), 2)
    yield pool
    pool.close()


def act(*actions: int) -> dict[int, np.ndarray]:
    return {which: np.full(2, action) for which, action in enumerate(actions)}


def test_workers_do_what_an_engine_in_this_process_does(pool: Pool) -> None:
    own = [{name: np.zeros(shape, dtype) for name, (shape, dtype) in LAYOUT.items()} for _ in range(2)]
    engines = [Drifting(arrays) for arrays in own]
    assert pool.reset({0: 5, 1: 6}) == {}
    for which, seed in enumerate((5, 6)):
        engines[which].reset(seed)
    for actions in ((0, 1), (1, 1), (0, 0)):
        assert pool.step(act(*actions)) == {}
        for arrays, one, action in zip(own, engines, actions, strict=True):
            arrays["action"][...] = action
            one.step()
    for theirs, ours in zip(pool.arrays, own, strict=True):
        for name in LAYOUT:
            np.testing.assert_array_equal(theirs[name], ours[name])
    assert not np.array_equal(own[0]["obs"], own[1]["obs"])


def test_a_worker_alone_leaves_the_others_where_they_are(pool: Pool) -> None:
    pool.reset({0: 1, 1: 2})
    assert pool.step({1: np.zeros(2)}) == {}
    assert [arrays["obs"][0, 1] for arrays in pool.arrays] == [0, 1]


def test_arrays_of_a_layout_do_not_overlap() -> None:
    import mmap

    with mmap.mmap(-1, worker.size(LAYOUT)) as memory:
        arrays = worker.views(memory, LAYOUT)
        for number, array in enumerate(arrays.values()):
            array[...] = number + 1
        for number, (name, array) in enumerate(arrays.items()):
            assert array.shape == LAYOUT[name][0]
            assert np.all(array == number + 1)
        del arrays, array


def test_a_killed_worker_is_replaced(pool: Pool) -> None:
    pool.reset({0: 1, 1: 2})
    before = pool.process_ids
    os.kill(before[0], signal.SIGKILL)
    failures = pool.step(act(0, 0))
    assert list(failures) == [0]
    assert "killed by signal 9" in failures[0]
    assert pool.process_ids[1] == before[1]
    assert pool.process_ids[0] != before[0]
    assert pool.arrays[1]["obs"][0, 1] == 1
    assert pool.reset({0: 1}) == {}
    assert pool.step({0: np.zeros(2)}) == {}


def test_what_an_engine_raises_reaches_the_pool(pool: Pool) -> None:
    pool.reset({0: 13})
    pool.step({0: np.zeros(2)})
    assert pool.step({0: np.zeros(2)}) == {0: "the bridge is out."}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"how": "start"}, "there is no such road."),
        ({"fail_at": 1, "how": "die"}, "ended with status 3. Error: The bridge."),
        ({"fail_at": 1, "how": "hang", "timeout_s": 2.0}, "no answer within 2 s"),
    ],
)
def test_failures_are_reported_in_words(options: dict, reason: str) -> None:
    pool = Pool(engine(**options), 1)
    failures = pool.reset({0: 1}) or pool.step({0: np.zeros(2)})
    assert reason in failures[0]
    pool.close()


def alive(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("forgotten", [False, True])
def test_no_worker_outlives_its_pool(forgotten: bool) -> None:
    """Closed, or dropped by whoever held it; warnings of unclosed files are errors here."""
    pool = Pool(engine(), 2)
    pool.reset({0: 1, 1: 2})
    process_ids = pool.process_ids
    assert all(map(alive, process_ids))
    if not forgotten:
        pool.close()
    del pool
    assert not any(map(alive, process_ids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(number: signal.Signals) -> None:
    """However that ends."""
    code = (
        "import signal, time\nfrom drifters import engine\nfrom khop.hosts.pool import Pool\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        "pool = Pool(engine(), 2)\npool.reset({0: 1, 1: 2})\nprint(*pool.process_ids, flush=True)\ntime.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        process_ids = [int(word) for word in parent.stdout.readline().split()]
        assert len(process_ids) == 2
        assert all(map(alive, process_ids))
        parent.send_signal(number)
        parent.wait(20)
    deadline = time.monotonic() + 10
    while any(map(alive, process_ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, process_ids))
