"""Probe a finished run's frozen features."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.probe import Probe


def probe_run(run: Path, probes: Mapping[str, Probe], checkpoint: CheckpointChoice = "last", random: bool = False,
              allowed: Sequence[str] = ()) -> dict[str, float]:
    """Probe a run's checkpoint or, if ``random``, an untrained network of the same config.

    Returns:
      Accuracies as `Probe.run`, with the probe's name before each (none for a probe called ""); also written to
      ``probes/STEP.json`` or ``probes/random.json`` in the run's folder.

    Raises:
      UserError: as `Probe.run` and `open_run`.
    """
    trainer, state, step = open_run(run, checkpoint, allowed)
    if random:
        state = dataclasses.replace(trainer.random_init(), ema_params=None)
    results = {" ".join(filter(None, (name, key))): accuracy for name, probe in probes.items()
               for key, accuracy in probe.run(trainer, state.eval_params, state.batch_stats).items()}
    folder = as_path(run) / "probes"
    folder.mkdir(exist_ok=True)
    content = {"step": None if random else step, **results}
    write_text(folder / f"{'random' if random else step}.json", json.dumps(content, indent=2) + "\n")
    return results


def tabulate(results: dict[str, float]) -> str:
    """Each kind's accuracy as a line of text; of several seeds the median, minimum and maximum."""
    lines = []
    for name in [name for name in results if "/" not in name]:
        seeds = sorted(accuracy for key, accuracy in results.items() if key.startswith(f"{name}/"))
        spread = f"   ({seeds[0]:.4f} to {seeds[-1]:.4f}, {len(seeds)} seeds)" if seeds else ""
        lines.append(f"{name.replace('_', ' '):20} {results[name]:.4f}{spread}")
    return "\n".join(lines)
