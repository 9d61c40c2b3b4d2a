"""Every command, and every group of them, has help: at once, in 80 columns, without JAX."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from big_vision_lite import __version__
from big_vision_lite.cli import COMMANDS, main

REPOSITORY = Path(__file__).parents[2]
GROUPS = sorted({name.split()[0] for name in COMMANDS if " " in name})


@pytest.fixture
def printed(capsys, monkeypatch):
    """Runs a command that must end with code 0 and say nothing on stderr, and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(REPOSITORY)

    def run(*arguments: str) -> str:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        out, error = capsys.readouterr()
        assert code == 0 and not error, (arguments, code, error)
        return out

    return run


def test_commands_and_groups_answer_help(printed):
    assert printed("--version") == f"big_vision_lite {__version__}\n"
    usage = printed()
    assert usage == printed("-h") == printed("--help") == printed("help")
    assert all(f"bvl {name}" in usage for name in COMMANDS)
    for name in (*GROUPS, *COMMANDS):
        help_ = printed(*name.split(), "--help")
        assert help_ == printed(*name.split(), "-h") == printed("help", *name.split())
        assert help_.startswith(f"usage: bvl {name} ") and max(map(len, help_.splitlines())) <= 80, help_
    for group in GROUPS:
        assert printed(group) == printed(group, "--help")
        assert all((f"bvl {name} " in printed(group)) == name.startswith(f"{group} ") for name in COMMANDS)
    assert max(map(len, usage.splitlines())) <= 80


def test_metavars(printed):
    for name, command in COMMANDS.items():
        metavar = re.match(r"RUN|CONFIG|SOURCE|STUDY|FILE|FOLDER", command.arguments.strip("["))
        if metavar:
            help_ = printed(*name.split(), "--help")
            assert re.search(rf"^(usage: .*|\W+){metavar[0]}\b", help_, re.MULTILINE), help_


def test_help_never_imports_jax():
    code = """
import contextlib, io, sys
from big_vision_lite.cli import COMMANDS, main
for name in ("", "data", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    assert not {"jax", "flax", "grain", "tensorflow"} & set(sys.modules), name
main(["config", "list"])
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, check=True)
    listed = done.stdout
    assert "bvl train configs/quickstart.py\n" in listed and "bvl study configs/studies/quickstart.py\n" in listed
    assert "seed=0" in listed and max(map(len, listed.splitlines())) <= 80


def test_help_of_a_config(printed):
    short = printed("train", "configs/image_folder.py:root=/photos,steps=30", "--help")
    assert max(map(len, short.splitlines())) <= 80
    parts = ["Train a ResNet", "  root: str (required)\n", "  steps: int = 4000\n", "--steps INT", "(default: 30)",
             "--optimizer.learning-rate FLOAT", "--workdir PATH"]
    where = [short.index(part) for part in parts]
    assert where == sorted(where) and "--train.prefetch" not in short and "--help-all" in short
    everything = printed("train", "configs/image_folder.py:root=/photos,steps=30", "--help-all")
    assert len(everything) > 2 * len(short)
    assert all(name in everything for name in ("--train.prefetch", "--coordinator", "--workdir", "--backbone.depth"))
    unset = printed("train", "configs/image_folder.py", "--help")
    assert all(text in unset for text in ("  root: str (required)\n", "image_folder.py needs root=...", "--workdir"))
    study = printed("study", "configs/studies/quickstart.py", "--help")
    assert re.search(r"^  \w+: tuple\[int, \.\.\.\] = \(200, ", study, re.MULTILINE) and "--only" in study


@pytest.mark.parametrize(("arguments", "message"), [
    (["trian"], "bvl: no command 'trian'; did you mean 'train'?"),
    (["data", "inspct"], "bvl: no command 'data inspct'; did you mean 'data inspect'"),
    (["help", "dta"], "bvl: no command 'dta'; did you mean 'data'"),
    (["bench", "saves"], "bvl: no command 'bench saves'; did you mean 'bench step'?"),
    (["config", "shwo"], "bvl: no command 'config shwo'; did you mean 'config show'"),
    (["train"], "bvl: bvl train needs a config: bvl train configs/quickstart.py"),
    (["launch"], "bvl: bvl launch needs a config"),
    (["study", "--list"], "bvl: bvl study needs a study"),
    (["train", "configs"], "bvl: 'configs' is a folder, not a config; to train on a folder of photos: bvl train "
                           "configs/image_folder.py:root=configs"),
])
def test_what_is_missing_or_misspelt(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_output_may_be_cut_off():
    command = "import sys; from big_vision_lite.cli import main; sys.exit(main(['config', 'list', 'configs']))"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=REPOSITORY) as process:
        process.stdout.close()  # as `head` does when it has seen enough
        error = process.stderr.read()
    assert process.returncode == 141 and not error
