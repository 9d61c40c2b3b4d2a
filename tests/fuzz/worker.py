"""The warmed process of the harness: it imports the package once and forks per input.

It must stay without threads that matter and without JAX backends, which do not survive a fork: a command that needs JAX
makes its devices in the fork.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import big_vision_lite

SECONDS = 10.0
"""Wall time of a command on an idle machine; a busy one has its load times as long."""
CHECK_SECONDS = 20.0
"""And of the comparison with an independent reading."""
BYTES = 2 * 2**30
"""Resident memory of a command."""
POLL = 0.01
OTHERS = (
    "array_record.python.array_record_module",
    "pycocotools.mask",
    "rich.table",
    "safetensors.numpy",
    "tensorflow_datasets",
)
"""What the package imports when it is needed."""


def main() -> None:
    """Serve requests, one JSON object per line, until stdin ends."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    modules = pkgutil.walk_packages(big_vision_lite.__path__, "big_vision_lite.")
    for name in [module.name for module in modules if not module.name.endswith("__main__")] + list(OTHERS):
        with contextlib.suppress(Exception):  # a module of an extra, or one that its command will report
            importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        print(json.dumps(run(**request)), file=answers, flush=True)


def run(entry: str, arguments: list[str], folder: str, check: str | None, seconds: float = SECONDS) -> dict:
    """Call ``entry`` (MODULE:FUNCTION) with the arguments in a fork whose working folder is ``folder``.

    Returns:
      "code": what the call returned, None if it did not; "wrong": what ``check`` found; "died": what ended the process
      before its time; "seconds" and "bytes".
    """
    began = time.monotonic()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _child(entry, arguments, folder, check, writer)
    os.close(writer)
    result = {"code": None, "wrong": None, "died": None, "bytes": 0}
    slow = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    until, ended, buffer = began + seconds * slow, os.pidfd_open(pid), b""
    while True:
        ready, _, _ = select.select([ended, reader], [], [], POLL)
        if reader in ready and (data := os.read(reader, 65536)):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for text in lines:
                result |= {"command_seconds": time.monotonic() - began, **json.loads(text)}
                until = time.monotonic() + CHECK_SECONDS * slow
        elif ended in ready:
            break
        result["bytes"] = max(result["bytes"], _resident(pid))
        if result["bytes"] > BYTES:
            result["died"] = f"more than {BYTES / 2**30:g} GiB resident"
        elif time.monotonic() > until:
            os.kill(pid, signal.SIGUSR1)  # writes where it is
            time.sleep(0.3)
            result["died"] = "no end in " + (f"{seconds:g} s" if result["code"] is None else "the comparison")
        if result["died"]:
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(ended)
    os.close(reader)
    result["bytes"] = max(result["bytes"], usage.ru_maxrss * 1024)
    if not result["died"] and os.WIFSIGNALED(status):
        result["died"] = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif not result["died"] and result["bytes"] > BYTES:
        result["died"] = f"{result['bytes'] / 2**30:.1f} GiB resident"
    elif not result["died"] and result["code"] is None:
        result["died"] = f"the process left with {os.waitstatus_to_exitcode(status)}"
    return result | {"seconds": time.monotonic() - began}


def _child(entry: str, arguments: list[str], folder: str, check: str | None, report: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        logs = Path(f"{folder}.log")
        logs.mkdir(exist_ok=True)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        where = (logs / "where").open("w")
        faulthandler.enable(where)
        faulthandler.register(signal.SIGUSR1, where, all_threads=True)
        os.chdir(folder)
        os.environ["BVL_CACHE"] = str(logs / "cache")
        os.environ["TFDS_DATA_DIR"] = folder
        module, _, function = entry.partition(":")
        code = _called(getattr(importlib.import_module(module), function), arguments)
        os.write(report, json.dumps({"code": code}).encode() + b"\n")
        if check is not None and code == 0:
            module, _, function = check.partition(":")
            wrong = getattr(importlib.import_module(module), function)(Path(folder), arguments)
            os.write(report, json.dumps({"wrong": wrong}).encode() + b"\n")
    except BaseException:
        os.write(report, json.dumps({"wrong": traceback.format_exc()}).encode() + b"\n")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _called(function, arguments: list[str]) -> int:
    """The exit code of a command, by the rules of Python's start."""
    try:
        code = function(arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def _resident(pid: int) -> int:
    """Bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
