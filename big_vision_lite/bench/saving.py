"""How long a save holds up the loop, beside a bare copy of the same state to host memory in the same process."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from big_vision_lite.bench.experiments import Network, said, spread
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure how long a save holds up training, beside a bare copy of the state to host memory."""

    network: Network = Network(depth=152)
    saves: int = 5
    """Saves that are measured, each after a copy; one more before them warms up."""
    steps: int = 5
    """Training steps that are timed without a save; while one is written they all are."""
    folder: Path | None = None
    """Where checkpoints go; None: the folder for temporary files."""
    out: Path | None = None
    """JSON file for all figures."""


def bench_save(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all figures; times are seconds.

    Returns:
      ``blocked`` (what the loop waits for, as it calls `Checkpoints`) and ``copy`` (of each array of the state, to
      memory that is new), their ``ratio``, ``step`` and ``step_while_writing``, ``written`` (until all is on the disk,
      while steps go on), ``slowed`` (what steps take longer meanwhile, all together), ``share`` (of the wall time of
      100 steps, the default interval, that a save costs: blocked and slowed) and ``bytes`` of the state.

    Raises:
      UserError: fewer than one save or step.
    """
    import jax
    import numpy as np

    from big_vision_lite.training.checkpoints import Checkpoints
    from big_vision_lite.training.job import Job

    if options.saves < 1 or options.steps < 1:
        raise UserError(f"saves={options.saves}, steps={options.steps}; expected at least one of each")
    experiment = options.network.experiment(steps=options.saves + 1, save_every=1)
    job = Job(experiment)
    state = job.init()
    batch = job.to_devices(next(job.batches(experiment.train, job.data, experiment.seed, 0, 1)))

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, figures = job.train_step(state, batch)
        jax.block_until_ready((state, figures))
        return time.perf_counter() - began

    def copy() -> float:
        began = time.perf_counter()
        held = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
        taken = time.perf_counter() - began
        del held
        return taken

    step()  # compiles
    alone = [step() for _ in range(options.steps)]
    copy()
    copies, blocked, writing, written, slowed = [], [], [], [], []
    resolved = {"bench": "save"}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_save") as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1)
        for number in range(options.saves + 1):
            copies.append(copy())
            began = time.perf_counter()
            checkpoints.settle(print)
            checkpoints.save(number, state, resolved, {"step": number})
            blocked.append(time.perf_counter() - began)
            during = []
            while checkpoints.writing():
                during.append(step())
            checkpoints.wait()
            written.append(time.perf_counter() - began)
            writing += during if number else []
            slowed.append(sum(during) - len(during) * statistics.median(alone))
        checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    found = {"network": dataclasses.asdict(options.network), "devices": [d.device_kind for d in jax.devices()],
             "bytes": size, "copy": spread(copies[1:]), "blocked": spread(blocked[1:]), "written": spread(written[1:]),
             "slowed": spread(slowed[1:]), "step": spread(alone),
             "step_while_writing": spread(writing) if writing else None}
    found["ratio"] = found["blocked"]["median"] / found["copy"]["median"]
    cost = found["blocked"]["median"] + found["slowed"]["median"]
    found["share"] = cost / (100 * found["step"]["median"] + cost)
    print(f"ResNet-{options.network.depth}, a state of {size / 1e6:,.0f} MB, {options.saves} saves and copies by turns")
    print(said("a bare copy of the state to host memory", found["copy"], "s", 3))
    print(said("a save holds up the loop for", found["blocked"], "s", 3))
    print(f"{'  times the bare copy':46} {found['ratio']:10.2f}")
    print(f"{'  share of wall time, saving every 100 steps':46} {found['share']:10.3%}")
    print(said("until it is written, while steps go on", found["written"], "s", 3))
    print(said("those steps together take longer by", found["slowed"], "s", 3))
    print(said("a step, nothing being written", found["step"], "s", 3))
    if writing:
        print(said("a step, while a checkpoint is written", found["step_while_writing"], "s", 3))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found
