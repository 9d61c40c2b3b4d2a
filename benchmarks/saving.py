"""How long a save blocks the training loop, against a plain copy of the same state in the same process.

    python benchmarks/saving.py
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import Network, line, main, spread, write_measurements

from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure how long a save blocks training, against a plain copy of the state to host memory."""

    network: Network = Network(depth=152)
    saves: int = 5
    """Saves to measure, each after a copy; one more before them warms up."""
    steps: int = 5
    """Training steps to time while nothing is written; while a checkpoint is written, all are timed."""
    folder: Path | None = None
    """Folder for checkpoints; by default that for temporary files."""
    out: Path | None = None
    """JSON file for all measurements."""


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements, in seconds.

    Returns:
      ``blocked`` (for as long the loop waits, as it calls `Checkpoints`) and ``copy`` (of each array of the state, to
      new memory), their ``ratio``, ``step`` and ``step_while_writing``, ``written`` (until all is on disk, while steps
      continue), ``slowdown`` (of those steps, in total), ``share`` (of the wall time of 100 steps, the shortest default
      interval, that a save costs: blocked and slowdown) and ``bytes`` of the state.

    Raises:
      UserError: fewer than one save or step.
    """
    import jax
    import numpy as np

    from big_vision_lite.commands.setup import set_up_jax
    from big_vision_lite.training.checkpoints import Checkpoints
    from big_vision_lite.training.trainer import Trainer

    if options.saves < 1 or options.steps < 1:
        raise UserError(f"saves={options.saves}, steps={options.steps}; expected at least one of each")
    experiment = options.network.experiment(steps=options.saves + 1)
    set_up_jax(experiment)
    trainer = Trainer(experiment)
    state = trainer.init()
    batch = trainer.to_devices(next(trainer.batches(experiment.train, trainer.data, experiment.seed, 0, 1)))

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = trainer.train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - began

    def copy() -> float:
        began = time.perf_counter()
        copied = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
        seconds = time.perf_counter() - began
        del copied
        return seconds

    step()  # compiles
    alone = [step() for _ in range(options.steps)]
    copy()
    copies, blocked, writing, written, slowdown = [], [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_saving") as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", max_checkpoints=1)
        for number in range(options.saves + 1):
            copies.append(copy())
            began = time.perf_counter()
            checkpoints.finish_or_drop(print)
            checkpoints.save(number, state, {"benchmark": "saving"}, {"step": number})
            blocked.append(time.perf_counter() - began)
            during = []
            while checkpoints.writing():
                during.append(step())
            checkpoints.wait()
            written.append(time.perf_counter() - began)
            writing += during if number else []
            slowdown.append(sum(during) - len(during) * statistics.median(alone))
        checkpoints.close()
    result = {"network": dataclasses.asdict(options.network), "devices": [d.device_kind for d in jax.devices()],
              "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)), "copy": spread(copies[1:]),
              "blocked": spread(blocked[1:]), "written": spread(written[1:]), "slowdown": spread(slowdown[1:]),
              "step": spread(alone), "step_while_writing": spread(writing) if writing else None}
    result["ratio"] = result["blocked"]["median"] / result["copy"]["median"]
    cost = result["blocked"]["median"] + result["slowdown"]["median"]
    result["share"] = cost / (100 * result["step"]["median"] + cost)
    print(f"ResNet-{options.network.depth}, a state of {result['bytes'] / 1e6:,.0f} MB, {options.saves} saves and "
          "copies, interleaved")
    print(line("a plain copy of the state to host memory", result["copy"], "s", 3))
    print(line("a save blocks the loop for", result["blocked"], "s", 3))
    print(f"{'  times the plain copy':46} {result['ratio']:10.2f}")
    print(f"{'  share of wall time, saving every 100 steps':46} {result['share']:10.3%}")
    print(line("time until it is written, while steps continue", result["written"], "s", 3))
    print(line("slowdown of those steps, in total", result["slowdown"], "s", 3))
    print(line("a step while nothing is written", result["step"], "s", 3))
    if writing:
        print(line("a step while a checkpoint is written", result["step_while_writing"], "s", 3))
    return write_measurements(options.out, result)


if __name__ == "__main__":
    main(benchmark, Options)
