"""Malformed inputs over the package's own entry point, each in a fork of a warmed process.

An input passes when the command refuses it (exit code 2 and one line on stderr that names the file or field), or
accepts it and an independent reading agrees. A traceback, a crash, a hang, a memory bomb, a riddle of a message and a
wrong reading are failures; the input's folder is then kept.

    python -m pytest -m fuzz tests/fuzz                     # 3,000 inputs; FUZZ_SEED=7 for others
    FUZZ_SEED=7 python -m pytest -n 0 -m fuzz tests/fuzz -k csv-12    # one of them
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MAIN = "big_vision_lite.cli:main"
LONGEST_LINE = 2000
"""Characters of a message. A longer one repeats what was read and says nothing."""
KEPT = Path(os.environ.get("FUZZ_KEEP", ROOT / "build" / "fuzz"))


@dataclasses.dataclass(frozen=True)
class Case:
    """A command over an input in its working folder."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    """A refusal must contain one of these: the file, its field, the option."""
    what: str = ""
    """What is malformed, for people."""
    expect: Literal["any", "refused", "accepted"] = "any"
    """``refused``: a reading of it can only be wrong. ``accepted``: it is sound."""
    check: str | None = None
    """MODULE:FUNCTION of (folder, arguments), called after the command has accepted: says how what was read differs
    from an independent reading; None if it does not."""


class Failed(AssertionError):
    """An input that was neither refused in one line nor read rightly."""


class Worker:
    """The warmed process; see fuzz/worker.py.

    Args:
      folder: for what its forks may share: compiled programs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT), str(ROOT / "tests")))),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
            "COLUMNS": "200",
            "HOME": str(folder),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.start()

    def start(self) -> None:
        command, pipe = [sys.executable, "-m", "fuzz.worker"], subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=self.folder, env=self.environment
        )

    def call(
        self,
        arguments: Iterable[str],
        folder: Path,
        entry: str = MAIN,
        check: str | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The result of `worker.run`, with "stdout" and "stderr".

        Raises:
          Failed: the worker itself has died; the next call has a new one.
        """
        request = {"entry": entry, "arguments": list(arguments), "folder": str(folder), "check": check}
        if seconds is not None:
            request["seconds"] = seconds
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.close()
            died = self.process.returncode
            self.start()
            raise Failed(f"the process that forks has left with {died}")
        streams = {name: (Path(f"{folder}.log") / name).read_text(errors="replace") for name in ("stdout", "stderr")}
        return json.loads(line) | streams

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def verdict(case: Case, result: dict[str, Any]) -> str:
    """``refused`` or ``accepted``. Raises: Failed with the reason."""
    error = result["stderr"]
    if result["died"]:
        raise Failed(result["died"])
    if "Traceback (most recent call last)" in error or result["code"] not in (0, 2):
        raise Failed(f"exit code {result['code']}: {error.strip().splitlines()[-1:]}")
    if result["code"] == 0:
        if result["wrong"]:
            raise Failed(f"read wrongly: {result['wrong']}")
        if case.expect == "refused":
            raise Failed("accepted, though no reading of it can be right")
        return "accepted"
    lines = error.splitlines()
    if len(lines) != 1 or not error.startswith("bvl: "):
        raise Failed(f"refused in {len(lines)} lines instead of one: {error[:500]!r}")
    if len(error) > LONGEST_LINE or not lines[0].isprintable():
        raise Failed(f"refused in {len(error):,} characters, some of them not printable: {error[:500]!r}")
    if case.names and not any(name in error for name in case.names):
        raise Failed(f"the message names none of {', '.join(case.names)}: {error!r}")
    if case.expect == "accepted":
        raise Failed(f"sound, and refused: {error!r}")
    return "refused"


def must(condition: object, *what: object) -> None:
    """Of an independent reading. Raises: ValueError when no reader would accept this."""
    if not condition:
        raise ValueError(f"{what!r:.300}")


Format = Callable[[np.random.Generator, int, Path], Case]
"""Writes an input into a folder. The int counts the inputs of a format: the first ones may be written by hand."""


def generator(name: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode()), number))


def formats(total: int, ordinary: int, **makers: Format):
    """Parametrizes a test by ``total`` inputs per format for ``-m fuzz``, and ``ordinary`` ones for every run."""
    chosen = []
    for name, make in makers.items():
        chosen += [
            pytest.param(name, make, 0, int(number), id=f"{name}-always-{number}")
            for number in generator(name, 1, 0).choice(total, ordinary, replace=False)
        ]
        chosen += [
            pytest.param(name, make, SEED, number, id=f"{name}-{number}", marks=pytest.mark.fuzz)
            for number in range(total)
        ]
    return pytest.mark.parametrize(("name", "make", "seed", "number"), chosen)


def check(worker: Worker, folder: Path, name: str, make: Format, seed: int, number: int, record) -> None:
    """Make an input, run its command and judge. ``record``: pytest's record_property, for the summary."""
    folder.mkdir()
    case = make(generator(name, seed, number), number, folder)
    result = worker.call(case.arguments, folder, check=case.check)
    record("fuzz", [name, "failed"])
    try:
        if (folder / "sprung").exists():
            raise Failed("code in the input was run")
        record("fuzz", [name, verdict(case, result)])
    except Failed as failure:
        kept = KEPT / f"{name}-{seed}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        for source, target in ((folder, kept), (Path(f"{folder}.log"), kept / ".log")):
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=_special)
        command = "bvl " + " ".join(map(repr, case.arguments))
        raise Failed(
            f"{name}-{number} of seed {seed} ({case.what}): {failure}\nin {kept}: {command}\n"
            f"stderr: {result['stderr'][-1500:]}"
        ) from None
    finally:
        for path in (folder, Path(f"{folder}.log")):
            shutil.rmtree(path, ignore_errors=True)


def _special(folder: str, names: list[str]) -> list[str]:
    """Pipes and links, which are not copied."""
    return [name for name in names if not (Path(folder, name).is_dir() or Path(folder, name).is_file())]
