"""Kills what runs, at random moments, until it is done: the end must be that of a run to which nothing happened.

    python tests/soak.py --minutes 20

The victims are a training run, both processes of a pair, an evaluation, a preparation of data and a study. They are
killed (KILL), asked to stop (TERM, INT) or stopped for a while (STOP, then CONT), while they start, train, save or
evaluate, and started again by the same command; now and then a bit of a checkpoint is flipped meanwhile. Each kill is a
line, and a table at the end counts kills and differences. The exit code is 1 if anything differed, hung or failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from processes import CONFIG, free_port, metrics_of

from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.metrics import read_metrics, read_run

STEPS, SAVE, EVALUATE = 40, 4, 10
IMAGES = 9000
"""Of the data that is prepared: three shards."""
SIGNALS = ("KILL", "KILL", "TERM", "INT", "STOP")
STUDY = '''
import dataclasses
from small_studies import small_experiment
from toy_backbone import Toy
from big_vision_lite.scaling.studies.study import Run, Study

def get_study():
    first, then = (dataclasses.replace(small_experiment(images, init, 60), backbone=Toy())
                   for images, init in ((20, None), (64, "run:first")))
    return Study("soak", (Run("first", first, factors={"images": 20}), Run("then", then)))
'''
IMPORT = "--import", "toy_backbone"
HANG = 180.0
"""Seconds within which a process must end that was asked to, or whose partner has gone."""


@dataclasses.dataclass(frozen=True)
class Victim:
    """Something that runs: its commands, and what must be the same in the end."""

    name: str
    commands: Callable[[Path], list[list[str]]]
    """Arguments of bvl for each of its processes, in a folder."""
    result: Callable[[Path], dict[str, Any]]
    """What it leaves in the folder, without times."""
    phases: dict[str, Callable[[Path, float], bool]] = dataclasses.field(default_factory=dict)
    """Moments to aim at, told by files of a folder that have changed since a time."""
    children: bool = False
    """Whether its child processes are killed as well."""


def run_result(folder: Path) -> dict[str, Any]:
    """Metrics and the arrays of the last checkpoint."""
    run = folder / "run"
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        arrays = {name: np.asarray(array).tobytes() for name, array in checkpoints.arrays().items()}
    return {"metrics.jsonl": metrics_of(run), "results": read_run(run)["results"], **arrays}


def files_result(pattern: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                           for path in folder.glob(pattern) if path.is_file()}


def changed(pattern: str) -> Callable[[Path, float], bool]:
    def has_changed(folder: Path, since: float) -> bool:
        with contextlib.suppress(OSError):  # it is renamed
            return any(path.stat().st_mtime > since for path in folder.glob(pattern))
        return False

    return has_changed


def is_evaluating(folder: Path, since: float) -> bool:
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    return (bool(lines) and lines[-1]["step"] % EVALUATE == 0 and "loss" in lines[-1]
            and changed("run/metrics.jsonl")(folder, since))


def victims(root: Path) -> list[Victim]:
    train = ["train", f"{root}/tiny.py", f"--steps={STEPS}", f"--save-every={SAVE}", f"--eval-every={EVALUATE}"]
    training, saving = "metrics.jsonl", "checkpoints/*orbax-checkpoint-tmp*"
    phases = {"training": changed(f"run/{training}"), "saving": changed(f"run/{saving}"), "evaluating": is_evaluating}

    def pair(folder: Path) -> list[list[str]]:
        flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes=2", "--init-timeout=30", "--watchdog=60"]
        return [[*train, f"--workdir={folder}/run", *flags, f"--process={process}"] for process in range(2)]

    def evaluate(folder: Path) -> list[list[str]]:
        if not (folder / "run").exists():
            shutil.copytree(root / "reference" / "study" / "study" / "first", folder / "run")
        return [["evaluate", f"{folder}/run", *IMPORT]]

    return [
        Victim("train", lambda folder: [[*train, f"--workdir={folder}/run"]], run_result, phases),
        Victim("pair", pair, run_result, phases),
        Victim("prepare", lambda folder: [["data", "prepare", f"{root}/images", "--name=soak",
                                           f"--data-dir={folder}/data", "--processes=2"]],
               files_result("data/soak/1.0.0/**/*"),
               {"writing": changed("data/soak/*/*.partial")}, children=True),
        Victim("study", lambda folder: [["study", f"{root}/study.py", f"--workdir={folder}/study", *IMPORT]],
               lambda folder: {"results.csv": (folder / "study" / "results.csv").read_text()},
               {"training": changed(f"study/*/{training}"), "saving": changed(f"study/*/{saving}")}, children=True),
        Victim("evaluate", evaluate, files_result("run/evaluations/*")),
    ]


class Soak:
    """Kills victims in turn and counts what comes of it."""

    def __init__(self, root: Path, seed: int, damage: bool):
        self.root, self.draw, self.damage = root, random.Random(seed), damage
        self.kills, self.wrong = collections.Counter(), collections.Counter()
        self.began, self.seconds, self.references = time.monotonic(), {}, {}
        self.environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PACE": "0.004",
                            "BVL_CACHE": str(root / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
                            "XLA_FLAGS": "--xla_backend_optimization_level=0",
                            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        (root / "tiny.py").write_text(CONFIG)
        (root / "study.py").write_text(STUDY)
        noise = np.random.default_rng(0)
        for number in range(IMAGES):
            path = root / "images" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (6, 6, 3), np.uint8)).save(path)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def start(self, victim: Victim, folder: Path) -> list[subprocess.Popen]:
        started = []
        for number, command in enumerate(victim.commands(folder)):
            with (folder / f"{number}.out").open("ab") as out, (folder / f"{number}.err").open("wb") as err:
                started.append(subprocess.Popen([sys.executable, "-m", "big_vision_lite", *command], stdout=out,
                                                stderr=err, env=self.environment))
        return started

    def end(self, started: list[subprocess.Popen]) -> list[int] | None:
        """The exit codes; None if a process hangs."""
        deadline = time.monotonic() + HANG
        try:
            return [process.wait(max(deadline - time.monotonic(), 0)) for process in started]
        except subprocess.TimeoutExpired:
            for process in started:
                process.kill()
                process.wait()
            return None

    def reference(self, victim: Victim) -> None:
        """What a run leaves to which nothing happens."""
        folder = self.root / "reference" / victim.name
        folder.mkdir(parents=True)
        began = time.monotonic()
        if (codes := self.end(self.start(victim, folder))) is None or any(codes):
            raise SystemExit(f"{victim.name} ends with {codes}:\n{self.errors(folder)}")
        self.seconds[victim.name] = time.monotonic() - began
        self.references[victim.name] = victim.result(folder)
        self.say(f"{victim.name}: {self.seconds[victim.name]:.1f} s undisturbed")

    def errors(self, folder: Path) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.err")))

    def moment(self, victim: Victim, folder: Path, started: list[subprocess.Popen]) -> str:
        """Wait for a random moment, and say which."""
        name, began = self.draw.choice(["any time", *victim.phases]), time.time()
        seconds = self.draw.uniform(0, self.seconds[victim.name] / 2)
        if name != "any time":
            deadline = time.monotonic() + 2 * self.seconds[victim.name]
            while (not victim.phases[name](folder, began) and started[0].poll() is None
                   and time.monotonic() < deadline):
                time.sleep(0.002)
            seconds = self.draw.choice([0, self.draw.uniform(0, 0.05), self.draw.uniform(0, 1)])
        time.sleep(seconds)
        return name

    def disturb(self, victim: Victim, folder: Path, started: list[subprocess.Popen]) -> list[int] | None:
        """Send a signal at a random moment. Returns the exit codes, all 0 if the victim is done; None if it runs on,
        or hangs and is killed."""
        moment, name = self.moment(victim, folder, started), self.draw.choice(SIGNALS)
        if all(process.poll() is not None for process in started):
            return self.end(started)
        number = signal.Signals[f"SIG{name}"]
        targets, whom = [self.draw.choice(started).pid], "one" if len(started) > 1 else "it"
        if victim.children and name == "KILL" and (below := children(targets[0])) and self.draw.random() < 0.3:
            targets, whom = [self.draw.choice(below)], "a child"
        elif len(started) > 1 and name != "STOP" and self.draw.random() < 0.5:
            targets, whom = [process.pid for process in started], "both"
        for target in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
        self.kills[victim.name, name] += 1
        text = f"{victim.name}: {name} to {whom}, {moment}: "
        if name == "STOP":
            time.sleep(seconds := self.draw.uniform(0, 3))
            os.kill(targets[0], signal.SIGCONT)
            self.say(f"{text}CONT after {seconds:.1f} s")
            return None
        if whom == "a child" and victim.name == "study":  # it tries that run again
            self.say(f"{text}runs on")
            return None
        codes = self.end(started)
        text += "HANGS" if codes is None else f"exit {codes}"
        errors = self.errors(folder)
        if codes is None or not all(self.may_end_with(victim, number, whom, code, errors) for code in codes):
            self.wrong[victim.name, name] += 1
            text += f", not expected:\n{errors}"
        self.say(text)
        return codes

    def may_end_with(self, victim: Victim, number: int, whom: str, code: int, errors: str) -> bool:
        expected = {0, -number, 128 + number}
        if victim.name == "pair":  # the other process: told to stop, EX_TEMPFAIL, JAX's abort, or never found this one
            expected |= {128 + signal.SIGTERM, 75, -signal.SIGABRT, 2}
        if whom == "a child":
            expected |= {2}
        if errors.rstrip().endswith("KeyboardInterrupt"):  # while Python itself starts
            expected |= {1}
        return code in expected

    def flip(self, folder: Path) -> None:
        """Flip a bit of the newest checkpoint, if there is one before it."""
        steps = sorted((path for path in folder.glob("run/checkpoints/*") if path.name.isdecimal()),
                       key=lambda path: int(path.name))
        if len(steps) < 2:
            return
        path = self.draw.choice(sorted(path for path in steps[-1].rglob("*") if path.is_file()))
        content = bytearray(path.read_bytes())
        if content:
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
            path.write_bytes(content)
            self.kills["train", "a bit"] += 1
            self.say(f"train: a bit of {path.relative_to(folder)} is flipped")

    def lap(self, victim: Victim, number: int, deadline: float) -> None:
        """Disturb a victim some times, let it finish, and compare."""
        folder = self.root / f"{victim.name}-{number}"
        folder.mkdir()
        before = collections.Counter(self.kills)
        started = self.start(victim, folder)
        for _ in range(self.draw.randint(3, 7)):
            if time.monotonic() > deadline:
                break
            codes = self.disturb(victim, folder, started)
            if codes is not None and not any(codes):
                break
            if all(process.poll() is not None for process in started):
                if self.damage and victim.name == "train" and self.draw.random() < 0.3:
                    self.flip(folder)
                started = self.start(victim, folder)
        codes = self.end(started)
        if codes is None or any(codes):
            codes = self.end(self.start(victim, folder))
        if codes is None or any(codes):
            self.say(f"{victim.name} does not go on, exit {codes}:\n{self.errors(folder)}")
        result = {} if codes is None or any(codes) else victim.result(folder)
        reference = self.references[victim.name]
        different = sorted(key for key in result.keys() | reference.keys() if result.get(key) != reference.get(key))
        if different:
            for key in self.kills:
                self.wrong[key] += key[0] == victim.name and self.kills[key] > before[key]
            self.say(f"{victim.name}: DIFFERS in {', '.join(different)[:300]}; see {folder}")
        else:
            self.say(f"{victim.name}: as undisturbed")
            shutil.rmtree(folder)

    def table(self) -> str:
        columns = sorted({name for _, name in self.kills})
        rows = [f"| victim | {' | '.join(columns)} | all |", f"|---|{'---|' * (len(columns) + 1)}"]
        for victim in [*self.references, "all"]:
            counts = [[sum(counter[key] for key in counter if victim in (key[0], "all") and column in (key[1], "all"))
                       for counter in (self.kills, self.wrong)] for column in [*columns, "all"]]
            rows.append(f"| {victim} | {' | '.join(f'{kills}, {wrong} wrong' for kills, wrong in counts)} |")
        return "\n".join(rows)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of moments and signals; another one each time")
    parser.add_argument("--only", nargs="*", default=[], help="names of victims (evaluate needs study)")
    parser.add_argument("--no-damage", action="store_true", help="leave checkpoints as they are")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIGINT ignored
    seed = random.randrange(10**6) if options.seed is None else options.seed
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {seed}, in {root}")
    soak = Soak(root, seed, not options.no_damage)
    chosen = [victim for victim in victims(root) if not options.only or victim.name in options.only]
    for victim in chosen:
        soak.reference(victim)
    deadline, number = soak.began + 60 * options.minutes, 0
    while time.monotonic() < deadline:
        for victim in chosen:
            if time.monotonic() < deadline:
                soak.lap(victim, number, deadline)
        number += 1
    print(soak.table())
    if not soak.wrong.total():
        shutil.rmtree(root)
    return 1 if soak.wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main())
