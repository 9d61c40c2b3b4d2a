"""What checksums cost a save and a restore: the same state with and without them, alternately in one process.

    python benchmarks/checkpoints.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from experiments import Network, line, main, spread, write_measurements

from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure saves and restores of states as large as those of ResNets, with and without checksums."""

    depths: tuple[int, ...] = (50, 152)
    """Of the ResNets, with SGD's momentum; all arrays hold normal numbers, which compress as trained ones do."""
    width: float = 1.0
    rounds: int = 15
    """Saves and restores of each kind to measure; one more before them warms up."""
    folder: Path | None = None
    """Folder for checkpoints; by default that for temporary files."""
    out: Path | None = None
    """JSON file for all measurements."""


@contextlib.contextmanager
def _without_checksums() -> Iterator[None]:
    """Saves and restores by Orbax alone."""
    from big_vision_lite.training import checkpoints, orbax_hooks

    with mock.patch.multiple(orbax_hooks, with_checksums=lambda handler: handler,
                             temporary_path_class=lambda folder: None), mock.patch.object(checkpoints, "damage",
                                                                                          lambda *unused: ""):
        yield


@contextlib.contextmanager
def _timing(seconds: list[float], owner: Any, name: str) -> Iterator[None]:
    """Add the seconds of each call of a function."""
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            seconds[-1] += time.perf_counter() - began

    with mock.patch.object(owner, name, timed):
        yield


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements, in seconds.

    Returns:
      Per depth: ``bytes`` of the state; ``held`` (for as long a save holds the loop), ``written`` (until it is
      complete) and ``restored``, each "with" and "without" checksums; ``after`` (what checksums do once all arrays are
      written, the part that a save is longer by) and ``share``, the median of its share of ``written``.

    Raises:
      UserError: fewer than one round.
    """
    if options.rounds < 1:
        raise UserError(f"rounds={options.rounds}; expected at least one")
    return write_measurements(options.out, {str(depth): _measure(options, depth) for depth in options.depths})


def _measure(options: Options, depth: int) -> dict[str, Any]:
    import jax
    import numpy as np

    from big_vision_lite.training import checksums, orbax_hooks
    from big_vision_lite.training.checkpoints import Checkpoints
    from big_vision_lite.training.trainer import Trainer

    spec = Trainer(Network(depth, options.width).experiment(steps=1)).state_spec
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype)), spec)
    kinds = {"with": contextlib.nullcontext, "without": _without_checksums}
    held, written, restored, after = ({kind: [] for kind in kinds} for _ in range(4))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_checkpoints") as folder:
        saving = {}
        for kind, context in kinds.items():
            with context():
                saving[kind] = Checkpoints(Path(folder) / kind / "checkpoints", max_checkpoints=1)
        for number in range(options.rounds + 1):
            for kind in (kinds if number % 2 else reversed(kinds)):
                os.sync()  # nothing of the save before is left to write
                after[kind].append(0.0)
                with (kinds[kind](), _timing(after[kind], checksums.GrowingFolder, "finish"),
                      _timing(after[kind], orbax_hooks, "seal")):
                    began = time.perf_counter()
                    saving[kind].save(number, state, {"benchmark": "checkpoints"}, {"step": number})
                    held[kind].append(time.perf_counter() - began)
                    saving[kind].wait()
                    written[kind].append(time.perf_counter() - began)
                    with contextlib.closing(Checkpoints(saving[kind].folder)) as reading:
                        began = time.perf_counter()
                        reading.restore(number, state)
                        restored[kind].append(time.perf_counter() - began)
        for checkpoints in saving.values():
            checkpoints.close()
    result = {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)), "after": spread(after["with"][1:])}
    for name, values in (("held", held), ("written", written), ("restored", restored)):
        result[name] = {kind: spread(values[kind][1:]) for kind in kinds}
        result[name]["ratio"] = result[name]["with"]["median"] / result[name]["without"]["median"]
    result["share"] = float(np.median(np.divide(after["with"][1:], written["with"][1:])))
    print(f"ResNet-{depth}, a state of {result['bytes'] / 1e6:,.0f} MB, {options.rounds} saves and restores of each "
          "kind, interleaved")
    for name, text in (("held", "the loop is held"), ("written", "written after"), ("restored", "read after")):
        for kind in kinds:
            print(line(f"{text}, {kind} checksums", result[name][kind], "s", 4))
        print(f"{'  ratio':46} {result[name]['ratio']:10.3f}")
    print(line("checksums, once all arrays are written", result["after"], "s", 4))
    print(f"{'  share of the time until it is written':46} {result['share']:10.2%}")
    return result


if __name__ == "__main__":
    main(benchmark, Options)
