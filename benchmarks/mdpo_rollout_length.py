"""How long should imagined rollouts be? T = 1, 5, 25, 50, 100, 200 steps, the number of imagined steps being the same.

The gate on the models' error is open (``gate`` = 1e9), so that every T is really used. Records the return on the real
system and the models' held-out error; resumable, to docs/results/mdpo_rollout_length.csv and the figure beside it.

    .venv/bin/python benchmarks/mdpo_rollout_length.py [--quick] [--systems …] [--variants …] [--seeds …]
"""

from __future__ import annotations

from study import Study, Variant
from sweep import main

from khop.methods import METHODS

IMAGINED = METHODS["mdpo"].imagination
assert IMAGINED is not None
LENGTHS = (1, 5, 25, 50, 100, 200)


def branches(length: int) -> int:
    """As many as keep the imagined steps of a round what they are by default, a multiple of the ensemble."""
    per_member = IMAGINED.branches * IMAGINED.branch_length / length / IMAGINED.ensemble
    return IMAGINED.ensemble * max(round(per_member), 1)


STUDY = Study(
    "mdpo_rollout_length",
    [
        Variant(f"T {length}", "mdpo", 30_000, {"branch_length": length, "branches": branches(length), "gate": 1e9})
        for length in LENGTHS
    ],
)

if __name__ == "__main__":
    main(
        __doc__,
        STUDY,
        ["platoon-catchup", "platoon-slowdown", "ring"],
        lambda _: {"T": {length: f"T {length}" for length in LENGTHS}},
        "T [steps]",
        {"model_error_1": "model error, 1 step", "model_error_25": "model error, 25 steps"},
    )
