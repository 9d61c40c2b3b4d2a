"""How commands end: their exit codes, and the lines on stderr that explain them."""

import contextlib
import errno
import signal

import pytest

from big_vision_lite.cli import main
from big_vision_lite.commands import train
from big_vision_lite.commands.study_run import train_one
from big_vision_lite.errors import UserError


@pytest.fixture
def ended(monkeypatch, capsys):
    """Runs a command that raises an error, and returns its exit code and stderr."""
    def run(error: BaseException, *arguments: str) -> tuple[int, str]:
        def fail(words: list[str]) -> int:
            assert words == ["here"]  # no option of the command's own is lost
            raise error

        monkeypatch.setattr(train, "config_list", fail)
        capsys.readouterr()
        return main(arguments or ("config", "list", "here")), capsys.readouterr().err

    return run


@pytest.mark.parametrize(("error", "line"), [
    (UserError("no such thing; did you mean 'it'?"), "no such thing; did you mean 'it'?"),
    (UserError("class 'a\nb' of '\x1b[31m'"), r"class 'a\nb' of '\x1b[31m'"),
    (UserError("cannot save a checkpoint: RESOURCE_EXHAUSTED: No space left on device; free some space"),
     "cannot save a checkpoint: RESOURCE_EXHAUSTED: No space left on device; free some space"),
    (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    (OSError("the bucket is away\nfor a while"), "the bucket is away"),
    (MemoryError(), "it needs more memory than there is"),
    (MemoryError("Unable to allocate 22.0 TiB for an array"), "Unable to allocate 22.0 TiB for an array"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore"),
     "the device is out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.; take smaller batches or "
     "images, or --grad-accum-steps 2"),
])
def test_input_and_machines_that_fail_are_one_line(ended, error, line):
    assert ended(error) == (2, f"bvl: {line}\n")
    for words in (("--debug", "config", "list", "here"), ("config", "--debug", "list", "here"),
                  ("config", "list", "here", "--debug")):
        code, text = ended(error, *words)
        assert code == 2 and text.startswith("Traceback") and text.endswith(f"bvl: {line}\n")


@pytest.mark.parametrize("error", [KeyError("AP50"), TypeError("'<' not supported"), RecursionError("too deep"),
                                   AssertionError(), ZeroDivisionError("division by zero")])
def test_a_bug_is_said_to_be_one(ended, error):
    code, text = ended(error)
    assert code == 1 and text.startswith("Traceback") and "raise error" in text
    last = text.splitlines()[-1]
    assert last.startswith("bvl: this is a bug of big_vision_lite 0.") and type(error).__name__ in last


def test_control_c_is_no_error(ended):
    assert ended(KeyboardInterrupt()) == (130, "bvl: interrupted\n")


def test_control_c_that_a_library_turns_into_an_error(monkeypatch, capsys):
    """As compiled modules do that are being imported."""
    def fail(words: list[str]) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("Encountered an error while initializing the extension.")

    monkeypatch.setattr(train, "config_list", fail)
    assert (main(["config", "list"]), capsys.readouterr().err) == (130, "bvl: interrupted\n")


def test_a_run_of_a_study_ends_like_a_command(capsys, monkeypatch, tmp_path):
    for error, code, line in ((OSError(errno.EIO, "Input/output error", "x"), 2, "bvl: x: Input/output error"),
                              (KeyError("x"), 1, "bvl: this is a bug")):
        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr("big_vision_lite.commands.study_run.read_experiment", fail)
        assert train_one([str(tmp_path / "a.json"), str(tmp_path / "a"), "--alone"]) == code
        assert capsys.readouterr().err.splitlines()[-1].startswith(line)


@pytest.mark.parametrize(("arguments", "message"), [
    (["evaluate", ""], "argument 2, '', is empty; is a variable of the shell unset?"),
    (["train", "configs/quickstart.py", "--workdir="], "argument 3, '--workdir=', is empty"),
    (["predict", "run", "/photos/\udcff.jpg"], r"argument 3, '/photos/\udcff.jpg', is not UTF-8; rename the file"),
    (["train", "a" * 5000], "File name too long"), (["evaluate", "a" * 5000], "File name too long"),
    (["laws", "a" * 5000], "File name too long"), (["report", "a" * 5000], "File name too long"),
    (["config", "list", "a" * 5000], "File name too long"), (["config", "list", "nowhere"], "no folder 'nowhere'"),
    (["preflight", "configs/quickstart.py", "--topology", "cpu:99999999999999"], "expected at most 10,000"),
    (["preflight", "configs/quickstart.py", "--topology", f"gpu:h100:{10**30}"], "expected at most 10,000"),
    (["preflight", "configs/quickstart.py", "--topology", "cpu:8", "--classes", f"{10**12}"], "1 to 10,000,000"),
    (["train", "configs/quickstart.py", "--mesh.fsdp", "0"], "Mesh: data=None, fsdp=0; expected at least 1"),
    (["train", "configs/quickstart.py", "--seed", f"{2**64}"], "Experiment.seed=18446744073709551616: Expected a num"),
    (["train", "configs/quickstart.py", "--seed", "-1"], "Experiment: seed=-1; expected at least 0"),
    (["train", "configs/quickstart.py", "--ema", "nan"], "Experiment.ema=nan: Expected a finite number"),
    (["train", "configs/quickstart.py", "--eval-every", "inf"], "Experiment.eval_every=inf: Expected a finite number"),
    (["train", "configs/quickstart.py", "--watchdog", "nan"], "--watchdog nan; expected seconds, or 0 for none"),
])
def test_odd_arguments(arguments, message, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("bvl: ") and error.count("\n") == 1 and message in error


def test_odd_imports(capsys):
    for module, reason in ((".", "TypeError: "), ("a..b", "ModuleNotFoundError: No module named 'a'"),
                           ("a" * 5000, "")):
        assert main(["evaluate", "nowhere", "--import", module]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bvl: --import {module[:400]}") and error.count("\n") == 1
        assert f": {reason}" in error and len(error) < 2000
