"""Configs: arguments by their types, JSON that comes back equal, what JSON may not make, typing mistakes."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest
import tyro

from big_vision_lite import config
from big_vision_lite.commands.arguments import parse
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment, read_experiment

REPOSITORY = Path(__file__).parents[2]
IMAGE_FOLDER = REPOSITORY / "configs" / "image_folder.py"

ARGUMENTS = """
from __future__ import annotations
from typing import Literal

def get_config(name: str, depth: int | None = 50, flip: bool = True, area: tuple[float, ...] = (0.1, 1.0),
               kind: Literal["small", 8] = "small", rate: float | str = 1.0, free="x"):
    return dict(name=name, depth=depth, flip=flip, area=area, kind=kind, rate=rate, free=free)
"""


@pytest.fixture
def arguments(tmp_path) -> Path:
    path = tmp_path / "arguments.py"
    path.write_text(ARGUMENTS)
    return path


@pytest.fixture
def experiment() -> Experiment:
    return config.load(f"{IMAGE_FOLDER}:root=/photos,size=64,depth=50,steps=100")


def test_arguments_are_read_by_their_types(arguments):
    defaults = {"depth": 50, "flip": True, "area": (0.1, 1.0), "kind": "small", "rate": 1.0, "free": "x"}
    assert config.load(f"{arguments}:name=a") == {"name": "a", **defaults}
    # A comma ends a value only where "word=" follows: lists and paths keep theirs.
    given = "name=/a,b/c=d, depth=none,flip=False,area=(0.2,0.5),kind=8,rate=adaptive,free=7"
    read = config.load(f"{arguments}:{given}")
    assert read == {"name": "/a,b/c=d", "depth": None, "flip": False, "area": (0.2, 0.5), "kind": 8,
                    "rate": "adaptive", "free": "7"}
    assert type(read["kind"]) is int
    read = config.load(f"{arguments}:name=a,depth=18,rate=1e-3")
    assert read == {"name": "a", **defaults, "depth": 18, "rate": 1e-3}
    read = config.load(f"{arguments}:depth=18", name="/a,depth=50", flip=False)
    assert read == {"name": "/a,depth=50", **defaults, "depth": 18, "flip": False}


@pytest.mark.parametrize(("text", "name"), [
    ("name='/runs/a,depth=18',depth=34", "/runs/a,depth=18"), ('name="it\'s, depth=18", depth=34', "it's, depth=18"),
    ("depth=34,name=it's", "it's"), ("name='a'b,depth=34", "'a'b"), ("name='a,depth=34", "'a"), ("name='none'", "none"),
])
def test_quotes_keep_a_value_together(arguments, text, name):
    read = config.load(f"{arguments}:{text}")
    assert read["name"] == name and read["depth"] == (34 if "34" in text else 50)


def test_a_folder_whose_name_reads_as_several_arguments(arguments, tmp_path):
    folder = tmp_path / "tuned,depth=18"
    assert config.load(f"{arguments}:name={folder}")["depth"] == 18
    folder.mkdir()
    with pytest.raises(UserError, match=r"there is a file or folder .*; as one value it needs quotes: name='.*h=18'"):
        config.load(f"{arguments}:name={folder}")
    assert config.load(f"{arguments}:name='{folder}'") == config.load(str(arguments), name=str(folder))


@pytest.mark.parametrize(("given", "message"), [
    ("name=a,dept=3", "no argument 'dept'; did you mean 'depth'?"),
    ("name=a,depth=3.5", "depth='3.5' is not int | None"),
    ("name=a,flip=yes", "flip='yes' is not bool"),
    ("name=a,area=0.1,wide", "area='0.1,wide' is not tuple[float, ...]"),
    ("name=a,kind=smal", "kind='smal' is not"),
    ("depth=3", "needs name=..."),
    ("depth", "'depth' has no value; expected argument=value"),
    ("depth=3,name=", "name= has no value; expected name=value"),
])
def test_wrong_arguments_are_named(arguments, given, message):
    with pytest.raises(UserError) as raised:
        config.load(f"{arguments}:{given}")
    assert message in str(raised.value) and str(arguments) in str(raised.value)


@pytest.mark.parametrize(("text", "hint", "value"), [
    ("none", str | None, None), ("a", tuple[str, ...] | str, "a"), ("a,b", tuple[str, ...] | str | None, ("a", "b")),
    ("5", tuple[str, ...] | int | None, 5), ("2", str | float, 2.0), ("1,2", tuple[int, int] | None, (1, 2)),
    ("", tuple[int, ...], ()), ("-1", int, -1), ("a,b", str | int, "a,b"), ("TRUE", bool | None, True),
    ("299", Literal[224, 299], 299), ("none", Literal["none", "class"], "none"),
    ("'a,b', c", tuple[str, ...], ("a,b", " c")), ("'a,b'", tuple[str, ...] | str, "a,b"),
])
def test_values_of_unions(text, hint, value):
    read = config.parse_value(text, hint)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("text", "hint"), [("1,2,3", tuple[int, int]), ("x", Experiment), ("1", Literal[2] | None)])
def test_values_of_another_type(text, hint):
    with pytest.raises(ValueError):
        config.parse_value(text, hint)


def test_what_a_file_says_about_itself(arguments):
    arguments.write_text('"""A summary.\n\nMore."""\n' + ARGUMENTS.replace('free="x"):', """free="x"):
    \'\'\'
    Args:
      name: of the data,
        on two lines.
      depth: layers: 10 or 50.
    \'\'\'""") + "\ndef get_more(): ...\n\nraise SystemExit  # it is not run\n")
    kind, summary, found = config.describe(arguments)
    assert (kind, summary) == ("config", "A summary.")
    assert found[:2] == [("name", "str", None, "of the data, on two lines."),
                                  ("depth", "int | None", "50", "layers: 10 or 50.")]
    assert found[-1] == ("free", "str", "'x'", "") and len(found) == 7
    arguments.write_text("x = 1")
    assert config.describe(arguments) is None


@pytest.mark.parametrize(("text", "message"), [
    ("def get_config(:\n    pass", ", line 1: SyntaxError: invalid syntax"),
    ("import no_such_module", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ("import collections as c\ndef get_config():\n    return c.OrderdDict()", ", line 3: AttributeError: "),
    ("import dataclasses\n@dataclasses.dataclass\nclass Part:\n    momentum: float = 0.9\n"
     "def get_config():\n    return Part(\n        momentun=1)",
     ", line 6: TypeError: Part.__init__() got an unexpected keyword argument 'momentun'; did you mean 'momentum'?"),
    ("def get_config():\n    x = 1\n    raise KeyError('a\\nb')", r", line 3: KeyError: 'a\nb'"),
    ("def get_config():\n    return get_config()", ", line 2: RecursionError: "),
    ("def get_config():\n    raise SystemExit('stop')", ", line 2: SystemExit: stop"),
    ("def get_config():\n    raise BaseException('stop')", ", line 2: BaseException: stop"),
    ("from __future__ import annotations\ndef get_config(depth: imt): pass", "NameError: name 'imt' is not defined"),
    ("x = 1\0", "SyntaxError: source code string cannot contain null bytes"),
    ("get_config = 5", "TypeError: 5 is not a callable object"),
])
def test_an_error_in_a_config_is_one_line_that_names_its_line(arguments, text, message, monkeypatch):
    arguments.write_text(text)
    monkeypatch.chdir(arguments.parent)
    with pytest.raises(UserError) as error:
        config.load(arguments.name)
    assert str(error.value).startswith(arguments.name) and message in str(error.value) and "\n" not in str(error.value)
    assert "--debug shows the traceback" in str(error.value) and error.value.__cause__ is not None


def test_wrong_files_are_named(arguments, tmp_path):
    with pytest.raises(UserError, match=r"no config file .*argumnets\.py.* did you mean .*arguments\.py"):
        config.load(str(arguments.with_name("argumnets.py")))
    arguments.write_text("get_experiment = None")
    with pytest.raises(UserError, match="has no function get_config"):
        config.load(str(arguments))
    with pytest.raises(UserError, match=r"is a folder, not a config; .*: bvl train configs/image_folder\.py:root=/.+"):
        config.load(str(tmp_path))


def test_a_wrong_name_is_looked_for_beside_it_and_in_configs(tmp_path, monkeypatch):
    for name in ("beside.py", "below/bezide.py", "configs/transfer/beside2.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'beside\.py'\?$"):
        config.load("bseide.py")
    with pytest.raises(UserError, match=r"did you mean 'configs/transfer/beside2\.py'"):
        config.load("configs/beside2.py")


def test_json_comes_back_equal(experiment):
    evals = {**experiment.evals, "class": experiment.train}  # a name that JSON gives a meaning of its own
    for original in (experiment, dataclasses.replace(experiment, evals=evals, ema=0.999)):
        tree = json.loads(json.dumps(config.to_json(original)))
        again = config.from_json(tree)
        assert again == original and config.to_json(again) == tree
        assert isinstance(again.train.transform.area, tuple)


@pytest.mark.parametrize(("tree", "message"), [
    ({"class": "os:system"}, "outside big_vision_lite"),
    ({"class": "collections:OrderedDict"}, "outside big_vision_lite"),
    ({"class": "big_vision_lite_evil.run:Thing"}, "outside big_vision_lite"),
    ({"class": "big_vision_lite.cli:main"}, "not a dataclass"),
    ({"class": "big_vision_lite.errors:UserError"}, "not a dataclass"),
    ({"class": "big_vision_lite.config:importlib.import_module"}, "not a dataclass"),
    ({"class": "big_vision_lite.experiment:Mesh"}, "not a dataclass of its module"),  # imported there
    ({"class": "big_vision_lite.experiment:Experimnt"}, "there is no"),
    ({"class": "big_vision_lite.training.mesh:Mesh", "fdsp": 2}, "no field 'fdsp'; did you mean 'fsdp'?"),
    ({"class": "big_vision_lite.experiment:Experiment", "steps": 3}, "needs 'train'"),
])
def test_json_makes_only_known_dataclasses(tree, message):
    with pytest.raises(UserError, match="config: ") as raised:
        config.from_json({"steps": [tree]})
    assert message in str(raised.value)


def test_reading_a_run_never_runs_its_config(tmp_path, monkeypatch):
    """A class of a config file can be saved; reading imports nothing that the caller did not allow."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_parts.py").write_text(textwrap.dedent("""
        import dataclasses, pathlib
        pathlib.Path(__file__).with_suffix(".ran").touch()

        @dataclasses.dataclass(frozen=True)
        class Part:
            sizes: tuple[int, ...] = (1, 2)
    """))
    path, ran = tmp_path / "config.json", tmp_path / "my_parts.ran"
    path.write_text('{"format": 2, "class": "my_parts:Part", "sizes": [3]}')
    with pytest.raises(UserError, match="allow its module with --import my_parts"):
        config.read(path)
    assert not ran.exists()
    part = config.read(path, allowed=["my_parts"])
    assert ran.exists() and part.sizes == (3,) and part == sys.modules["my_parts"].Part((3,))


@pytest.mark.parametrize("text", ["", '{"class": "big_vision_lite', "\xff", "[1]", "3", "null", "[" * 10**5,
                                  '{"format": 2, "a": ' + "[" * 900 + "]" * 900 + "}", '{"format": 2, "a": NaN}'])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"cannot read .*config\.json: .+") as error:
        read_experiment(path)
    assert "\n" not in str(error.value)
    for nowhere in (tmp_path / "none" / "config.json", path / "config.json"):
        with pytest.raises(UserError, match="a run folder holds one"):
            config.read(nowhere)


SPOILT = [
    (("steps",), "5", "Experiment.steps='5': Expected int, got str"),
    (("steps",), 10**30, "Expected a number of 64 bits"),
    (("seed",), -1, "seed=-1; expected at least 0"),
    (("evals",), ["val"], "Experiment.evals=('val',): Expected object, got array"),
    (("evals", "val"), 5, "Expected Input, got int"),
    (("train", "batch_size"), [1], "Input.batch_size=(1,): Expected int, got array"),
    (("train", "batch_size"), 10**10, "Experiment: batches of 10,000,000,000 images of (64, 64, 3)"),
    (("train", "transform"), {"size": 5}, "Input.transform={'size': 5}: Expected Transform, got dict"),
    (("train", "transform", "size"), 10**6, "expected at most 275 GB"),
    (("train", "transform", "area"), ["a", "b"], "RandomResizedCrop.area=('a', 'b'): Expected float, got str"),
    (("train", "source"), {"class": "big_vision_lite.training.mesh:Mesh"}, "Expected Source, got Mesh"),
    (("train", "source", "root"), "/a\0b", "ImageFolder.root='/a\\x00b': Expected text without NUL"),
    (("head",), {"class": "big_vision_lite.heads.head:Head"}, "'big_vision_lite.heads.head:Head' is not a dataclass"),
    (("head", "loss_kind"), "sigmiod", "loss_kind='sigmiod': Invalid enum value 'sigmiod'; did you mean 'sigmoid'?"),
    (("backbone", "depth"), 51, "ResNet.depth=51: Invalid enum value 51; did you mean '50'"),
    (("backbone", "width"), None, "ResNet.width=None: Expected float, got null"),
    (("mesh", "fsdp"), 0, "Mesh: data=None, fsdp=0; expected at least 1"),
    (("transfer", "lr_multipliers"), {"backbone": "slow"}, "Expected float, got str"),
    (("optimizer", "schedule"), "cosine", "SGD.schedule='cosine': Expected Schedule, got str"),
    ((), {"format": 2, "class": "big_vision_lite.training.mesh:Mesh"}, "describes a Mesh; expected an Experiment"),
    ((), {"format": 2}, "describes a dict; expected an Experiment"),
]


@pytest.mark.parametrize(("field", "value", "message"), SPOILT)
def test_a_config_json_with_a_wrong_value(experiment, tmp_path, field, value, message):
    path = tmp_path / "config.json"
    tree = owner = json.loads(config.dumps(experiment))
    for name in field[:-1]:
        owner = owner[name]
    if field:
        owner[field[-1]] = value
    path.write_text(json.dumps(tree if field else value))
    with pytest.raises(UserError) as error:
        read_experiment(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("change", "message"), [
    ({"format": None}, "has format None; this version reads 2; train the run anew"),
    ({"format": 3}, "has format 3; this version reads 2"),
    ({}, r"has format 1 \(before 0\.1\.0\); this version reads 2"),
])
def test_a_config_of_another_format(experiment, tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(config.dumps(experiment))
    values = json.loads(path.read_text())
    assert next(iter(values)) == "format" and config.read(path) == experiment
    del values["format"]
    path.write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=message):
        config.read(path)


def test_differences_name_fields(experiment):
    changed = dataclasses.replace(
        experiment, steps=200, eval_every=7, evals={},
        train=dataclasses.replace(experiment.train, workers=3, batch_size=64))
    old, new = config.to_json(experiment), config.to_json(changed)
    assert config.differences(old, old) == []
    expected = ["train.batch_size: 128 -> 64", "steps: 100 -> 200"]
    assert config.differences(old, new, (*WITHOUT_EFFECT, "evals")) == expected
    assert "train.workers: 0 -> 3" in config.differences(old, new)
    assert config.differences({"a": {"class": "m:A", "x": 1}}, {"a": {"class": "m:B", "x": 1}}) == \
        ['a.class: "m:A" -> "m:B"']


def bvl(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "big_vision_lite", *arguments], cwd=REPOSITORY, text=True,
                          capture_output=True, timeout=60)


def test_a_python_config_with_a_wrong_value(tmp_path):
    (tmp_path / "typo.py").write_text(textwrap.dedent(f"""
        import dataclasses
        from big_vision_lite import config

        def get_config():
            good = config.load("{IMAGE_FOLDER}", root="/photos")
            return dataclasses.replace(good, head=dataclasses.replace(good.head, loss_kind="nope"))
    """))
    ended = bvl("config", "show", str(tmp_path / "typo.py"))  # without the checks of signatures that tests add
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == ("bvl: Classification.loss_kind='nope': Invalid enum value 'nope'; valid: sigmoid, "
                            "softmax\n")


def test_config_show_prints_what_is_run(tmp_path):
    shown = bvl("config", "show", "configs/image_folder.py:root=/photos,steps=100", "--train.batch-size=64")
    assert shown.returncode == 0, shown.stderr
    expected = config.load(f"{IMAGE_FOLDER}:root=/photos,steps=100")
    expected = dataclasses.replace(expected, train=dataclasses.replace(expected.train, batch_size=64))
    assert json.loads(shown.stdout)["format"] == config.FORMAT
    (tmp_path / "config.json").write_text(shown.stdout)
    assert config.read(tmp_path / "config.json") == expected


@pytest.mark.parametrize(("arguments", "near"), [
    (["train", "configs/image_folder.py:root=/photos", "--optimizer.learning-rat=3"],
     "--optimizer.learning-rate"),
    (["train", "configs/image_folder.py:root=/photos,dept=18"], "'depth'"),
    (["train", "configs/image_fodler.py:root=/photos"], "'configs/image_folder.py'"),
])
def test_typing_mistakes_end_at_once(arguments, near):
    ended = bvl(*arguments)  # that little is imported until then, test_imports tells
    assert ended.returncode == 2 and near in ended.stderr and "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_sources_parsed_by_two_threads_at_once(monkeypatch):
    """Before CPython 3.11.8, `ast.parse` fails when another thread parses too; tyro reads the sources of a config."""
    cli, failed = tyro.cli, []

    def disturbed(*args, **kwargs):
        if not failed:
            failed.append(True)
            raise SystemError("AST constructor recursion depth mismatch (before=219, after=17)")
        return cli(*args, **kwargs)

    @dataclasses.dataclass(frozen=True)
    class Options:
        steps: int = 1

    monkeypatch.setattr(tyro, "cli", disturbed)
    assert parse(Options, ["--steps", "2"], "bvl").steps == 2 and failed
