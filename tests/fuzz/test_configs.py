"""Config .py files and their arguments; the independent reading is Python's."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import hypothesis
import numpy as np
from fuzz import harness
from fuzz.harness import ROOT, Case
from fuzz.made import special, tree
from fuzz.mutate import of_text, pick
from hypothesis import strategies

SOURCE = (ROOT / "configs" / "image_folder.py").read_text()
BODY = SOURCE[SOURCE.index("    small = size") :]
ODD_BODIES = (
    "    raise ValueError('no\\nreason')\n",
    "    raise SystemExit(3)\n",
    "    return None\n",
    "    return {}\n",
    "    return 1 / 0\n",
    "    return get_config(root)\n",
    "    return open('/nowhere/x')\n",
    "    raise Exception\n",
    "    import nowhere\n",
    "    return Experiment()\n",
    "    return Experiment\n",
    "    yield 3\n",
    "    raise BaseException('x')\n",
    "    return (lambda: get_config)()\n",
    "    raise KeyError('a\\tb')\n",
    "    raise UnicodeDecodeError('x', b'', 0, 1, 'y')\n",
    "    raise MemoryError\n",
    "    assert False\n",
    "    raise StopIteration\n",
    "    return input()\n",
    "    raise OSError(2, 'x', 'a\\nb')\n",
    "    raise RecursionError\n",
)
ODD_FIELDS = (
    ("steps=steps", "steps='10'"),
    ("steps=steps", "steps=10.5"),
    ("steps=steps", "steps=0"),
    ("steps=steps", "steps=-1"),
    ("steps=steps", "steps=True"),
    ("steps=steps", "steps=10**400"),
    ("steps=steps", "steps=float('nan')"),
    ("steps=steps", "step=steps"),
    ("seed=seed", "seed=2**80"),
    ("seed=seed", "seed=-1"),
    ("log_every=50", "log_every=0"),
    ("log_every=50", "log_every='x'"),
    ("eval_every=1 / 5", "eval_every=float('nan')"),
    ("eval_every=1 / 5", "eval_every=-1"),
    ("label_smoothing=0.1", "label_smoothing='x'"),
    ("label_smoothing=0.1", "label_smoothing=2"),
    ("label_smoothing=0.1", "label_smooth=0.1"),
    ('"softmax"', '"sofmax"'),
    ('"softmax"', "3"),
    ('on_bad_image="mask"', 'on_bad_image="msk"'),
    ("crop, batch_size", "crop, 'x'"),
    ("crop, batch_size", "crop, -8"),
    ("crop, batch_size", "None, batch_size"),
    ("ResNet(depth", "ResNet(19"),
    ("ResNet(depth", "ResNet('x'"),
    ("ResNet(depth", "RezNet(depth"),
    ("width=width", "width=0"),
    ("width=width", "width=-1"),
    ("width=width", "width=1e400"),
    ("width=width", "width=None"),
    ("head=Class", "hed=Class"),
    ("momentum", "momentun"),
    ("nesterov=True", "nesterov='yes'"),
    ("warmup=0.05", "warmup=5"),
    ("warmup=0.05", "warmup='x'"),
    ("weight_decay=5e-4", "weight_decay=[1]"),
    ('ImageFolder(root, "train")', '"photos"'),
    ('ImageFolder(root, "train")', "ImageFolder(3)"),
    ('ImageFolder(root, "train")', "ImageFolder"),
    ("evals={", "evals={3:"),
    ("evals={eval_split: ", "evals={'a/b': "),
    ('stem="half"', 'stem="haf"'),
    ("BatchNorm(group=min(64, batch_size))", "'batch'"),
    ("SGD(", "object("),
    ("SGD(", "SGD(lambda: "),
)
ARGUMENTS = (
    "root=photos",
    "root=photos,size=32",
    "root=photos,steps=x",
    "root=",
    "",
    "root",
    "root=photos,nowhere=3",
    "root=photos,root=x",
    "root=photos,depth=1e9",
    "root=photos,width=nan",
    "root=photos,seed=9" + "9" * 30,
    "root='photos'",
    "root=pho,tos",
    "root=a=b",
    ",,,",
    "root=photos,steps=1_000",
    "root=\0",
    "root=é,size=-1",
    "root=photos,batch_size=0",
    "root=photos,width=1e400",
    "root=" + "a" * 5000,
    "root=photos;size=3",
    "root=photos, size=32",
    "=3",
    "root=~",
    "root=photos,size=",
)


def configs(rng: np.random.Generator, number: int, folder: Path) -> Case:
    tree(folder / "photos", "train/cat/0.jpg", "train/dog/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
    arguments, text, by_hand = "root=photos", SOURCE.encode(), len(ODD_BODIES) + len(ODD_FIELDS) + len(ARGUMENTS)
    if number < len(ODD_BODIES):
        text, what = SOURCE.replace(BODY, ODD_BODIES[number]).encode(), ODD_BODIES[number].strip()
    elif number < len(ODD_BODIES) + len(ODD_FIELDS):
        old, new = ODD_FIELDS[number - len(ODD_BODIES)]
        text, what = SOURCE.replace(old, new).encode(), new
    elif number < by_hand:
        arguments = ARGUMENTS[number - len(ODD_BODIES) - len(ODD_FIELDS)]
        what = f"arguments {arguments:.80}"
    else:
        text, what = of_text(rng, SOURCE)
    if number > by_hand and rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder", "loop")), folder / "config.py")
    else:
        (folder / "config.py").write_bytes(text)
    command = pick(
        rng,
        (
            ("config", "show"),
            ("config", "show"),
            ("launch", "--cluster", f"{ROOT}/configs/clusters/slurm.toml"),
            ("config", "list", "."),
        ),
    )
    command = (
        command
        if command[1] == "list"
        else (*command, f"config.py:{arguments}")
        if command[0] == "config"
        else ("launch", f"config.py:{arguments}", *command[1:])
    )
    named = {"config.py", "photos", *re.findall(r"\w{4,}", SOURCE)}  # a class or a field will do
    return Case(command, tuple(named), what, check="fuzz.test_configs:equals_python")


def equals_python(folder: Path, arguments: list[str]) -> str | None:
    """The JSON that is shown has the values of the experiment that Python makes of the file."""
    if arguments[:2] != ["config", "show"] or arguments[2] != "config.py:root=photos":
        return None
    spec = importlib.util.spec_from_file_location("shown", folder / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = json.loads(Path(f"{folder}.log", "stdout").read_text())
    return _shown(shown, module.get_config("photos"), "config")


def _shown(values, made, where: str) -> str | None:
    if dataclasses.is_dataclass(made):
        made = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        values = {key: value for key, value in values.items() if key not in ("class", "format")}
    if isinstance(made, dict):
        if set(made) != set(values):
            return f"{where}: {set(values)} instead of {set(made)}"
        return next((wrong for key in made if (wrong := _shown(values[key], made[key], f"{where}.{key}"))), None)
    made = list(made) if isinstance(made, tuple) else made
    return None if values == made and (type(values) is type(made)) else f"{where}: {values!r} instead of {made!r}"


@harness.formats(170, 8, configs=configs)
def test_configs(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)


@hypothesis.settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(
    text=strategies.text(strategies.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
)
def test_an_argument_of_any_text(worker, tmp_path, text):
    """In quotes, a value is taken as it is: commas, =, spaces and other quotes too."""
    hypothesis.assume(not ("'" in text and '"' in text))
    (tmp_path / "config.py").write_text(SOURCE)
    quote = '"' if "'" in text else "'"
    result = worker.call(("config", "show", f"config.py:root={quote}{text}{quote},steps=7"), tmp_path)
    assert result["code"] == 0, result["stderr"]
    shown = json.loads(result["stdout"])
    assert shown["train"]["source"]["root"] == text and shown["steps"] == 7
