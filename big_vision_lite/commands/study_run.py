"""The process of one run of a study: ``python -m big_vision_lite.commands.study_run CONFIG.json WORKDIR``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import Imports, parse
from big_vision_lite.commands.setup import run_training
from big_vision_lite.errors import exit_code
from big_vision_lite.experiment import read_experiment
from big_vision_lite.training.distributed import Processes


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Train from a resolved config, in a folder: one run of a study."""

    config: Annotated[Path, tyro.conf.Positional]
    """JSON file, as `bvl config show` prints it."""
    workdir: Annotated[Path, tyro.conf.Positional]
    alone: bool = False
    """Do not end when standard input does, and join the run's other processes, if any: for jobs."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()
    imports: Imports = ()


def train_one(arguments: list[str]) -> int:
    """Returns the process's exit code."""
    from big_vision_lite.scaling.studies.results import final_metrics
    from big_vision_lite.scaling.studies.runner import OUTLIVING_SECONDS, end_with_parent
    from big_vision_lite.training.watchdog import PATIENCE

    try:
        options = parse(RunOptions, arguments, "python -m big_vision_lite.commands.study_run")
        if not options.alone:
            end_with_parent()
        experiment = read_experiment(options.config, options.imports)
        init = Path(experiment.transfer.init or "")
        if experiment.transfer.init and init.parent == options.workdir.resolve().parent:
            before = read_experiment(options.config.with_name(f"{init.name}.json"), options.imports)
            final_metrics(init, before)  # a run of the same study, which must be done
        return run_training(experiment, options.workdir, options.processes if options.alone else None,
                            watchdog=PATIENCE, patience=OUTLIVING_SECONDS)
    except Exception as error:
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(train_one(sys.argv[1:]))
