"""Files that people write: csv files of curves, cluster TOML, config .py files; and command lines.

The independent readings are csv's, tomllib's, and Python's own.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import ROOT, Case
from fuzz.mutate import NUMBERS, TEXTS, of_text, pick
from fuzz.test_folders import special, tree

CURVE = "images,error,seed,split\n" + "".join(
    f"{size},{0.1 + 5 * size ** -0.5 + 0.001 * seed:.4f},{seed},{'extrapolate' if size > 3000 else 'train'}\n"
    for seed in (0, 1) for size in (100, 200, 400, 800, 1600, 3200))
ODD_NUMBERS = ("1e-300", "1e300", "1e400", "nan", "inf", "-inf", "-1", "0", "", " 0.5 ", "1_000", "٣", "0x10", "1,5", "5%", "1e-45", "9" * 400, "1e-31", "True")
ODD_CURVES = (
    "", "\n", "images,error\n", "images,error\n100,0.5\n", "images,error\n100,0.5\n100,0.5\n", "images,error\n" + "100,0.5\n" * 30,
    "images,error\n" + "".join(f"{2 ** i},0.5\n" for i in range(12)), "images,error\n" + "".join(f"{2 ** i},{0.1 + i / 20}\n" for i in range(12)),
    "images,error\n" + "".join(f"{10.0 ** (2 * i)},{0.9 / (i + 1)}\n" for i in range(14)), "images,error\n200,0.5\n100,0.6\n", "x,error\n1,0.9\n2,0.8\n4,0.7\n8,0.6\n",
    "images,error,curve\n" + "".join(f"{2 ** i},{1 / (i + 1)},c{i % 3}\n" for i in range(24)), 'images,error\n"100,0.5\n', "images,images,error\n1,2,0.5\n",
    "images,error\n100,0.5,7\n", "images;error\n100;0.5\n", "\ufeffimages,error\n100,0.5\n200,0.4\n400,0.3\n800,0.25\n", "a,b\n1,2\n",
    "images,error\n" + "".join(f"{100 * 2 ** i},{1e-29 if i > 3 else 0.5}\n" for i in range(8)), "images,error\r100,0.5\r200,0.4\r", "\0\0\0", "images,error\n100,\0\n",
    "images,error\n" + "".join(f"{1e-29 * 2 ** i},{0.9 - i / 20}\n" for i in range(8)), "images,error," + "x" * 200_000 + "\n100,0.5,\n",
    "images,error\n" + "".join(f"{i + 1},{1 / (i + 1)}\n" for i in range(3000)), "images,error,seed\n" + "".join(f"100,0.{i + 1},{i}\n" for i in range(9)),
    *(CURVE.replace("800,", f"{number},", 1) for number in ODD_NUMBERS), *(CURVE.replace("0.6000", number, 1) for number in ODD_NUMBERS),
)


def curves(rng: np.random.Generator, number: int, folder: Path) -> Case:
    data, what = (ODD_CURVES[number].encode(), "by hand") if number < len(ODD_CURVES) else of_text(rng, CURVE)
    if rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder")), folder / "curve.csv")
    else:
        (folder / "curve.csv").write_bytes(data)
    more = pick(rng, ((), (), (), ("--target-error", "0.2"), ("--figure", "a.png"), ("--chance", "0.9"), ("--law", "power"), ("--upstream", "images")))
    return Case(("laws", "curve.csv", "--bootstrap", "20", *more), ("curve", "--", "size", "error"), f"{what} {data!r:.80} {more}",
                check="fuzz.test_texts:counts_rows")


def counts_rows(folder: Path, arguments: list[str]) -> str | None:
    """The points and sizes that are said are those of the file, and every number is finite and above 0."""
    if "--upstream" in arguments:
        return None
    with (folder / "curve.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True))
    x = next(name for name in ("x", "images", "seen_examples") if name in rows[0])
    said = [line for line in Path(f"{folder}.log", "stdout").read_text().splitlines() if " points at " in line]
    fitted = [row for row in rows if row.get("split", "train") == "train"]
    for row in rows:
        if not all(math.isfinite(float(row[column])) and float(row[column]) > 0 for column in (x, "error")):
            return f"accepted: {row}"
    names = list(dict.fromkeys(row.get("curve", "") for row in rows))
    expected = [(sum(row.get("curve", "") == name for row in fitted), len({float(row[x]) for row in fitted if row.get("curve", "") == name}))
                for name in names]
    found = [tuple(int(word.replace(",", "")) for word in line.rpartition(": ")[2].split(",  ")[0].replace("held out", "").split()
                   if word.replace(",", "").isdigit())[:2] for line in said]
    return None if found == expected else f"{said} instead of {expected}"


CLUSTERS = {path.stem: path.read_text() for path in sorted((ROOT / "configs" / "clusters").glob("*.toml"))}


def clusters(rng: np.random.Generator, number: int, folder: Path) -> Case:
    name = pick(rng, sorted(CLUSTERS))
    lines = [line for line in CLUSTERS[name].splitlines(keepends=True) if not line.startswith("#")]
    if number < 40:
        keys = [at for at, line in enumerate(lines) if "=" in line]
        value = pick(rng, ("0", "-1", "1e400", "nan", "9" * 400, "true", '""', '"a b"', '"$(touch sprung)"', '"a\\nb"', '"\\u0000"', "[]", "[1]", "{}", "[[]]",
                           "1979-05-27", '"é"', "'" + "a" * 5000 + "'", '"-rf"', "{x = 1}", "'\"'", "[" * 300 + "]" * 300, '"`id`"', "'; rm x'"))
        at = pick(rng, keys)
        lines[at] = f"{lines[at].partition('=')[0]}= {value}\n"
        data, what = "".join(lines).encode(), lines[at].strip()
    else:
        data, what = of_text(rng, "".join(lines))
    if rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder")), folder / "cluster.toml")
    else:
        (folder / "cluster.toml").write_bytes(data)
    (folder / "config.py").write_text((ROOT / "configs" / "quickstart.py").read_text())
    command = ("launch", "config.py", "--cluster", "cluster.toml", "--out", "job")
    return Case(command, ("cluster.toml",), f"{name}: {what:.100}", check="fuzz.test_texts:equals_toml")


def equals_toml(folder: Path, arguments: list[str]) -> str | None:
    """The fields are tomllib's, and bash can read the script."""
    import subprocess

    from big_vision_lite.launch.clusters import read_cluster

    values = tomllib.loads((folder / "cluster.toml").read_text("utf-8-sig"))
    cluster = read_cluster(folder / "cluster.toml")
    if values.pop("kind") != cluster.kind:
        return f"kind {cluster.kind}"
    read = json.loads(json.dumps(dataclasses.asdict(cluster)))
    for key, value in values.items():
        both = ((value, read[key]),)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            both = tuple((inner[name], outer[name]) for inner, outer in zip(value, read[key], strict=True) for name in inner)
        for given, found in both:
            if given != found or type(given) is not type(found):
                return f"{key}: {found!r} instead of {given!r}"
    for script in (folder / "job").glob("*.s*h*"):
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=10)
        if done.returncode:
            return f"{script.name} is no script of bash: {done.stderr[:200]}"
    return None


SOURCE = (ROOT / "configs" / "image_folder.py").read_text()
BODY = SOURCE[SOURCE.index("    small = size"):]
ODD_BODIES = (
    "    raise ValueError('no\\nreason')\n", "    raise SystemExit(3)\n", "    return None\n", "    return {}\n", "    return 1 / 0\n",
    "    return get_config(root)\n", "    return open('/nowhere/x')\n", "    raise Exception\n", "    import nowhere\n", "    return Experiment()\n", "    return Experiment\n",
    "    yield 3\n", "    raise BaseException('x')\n", "    return (lambda: get_config)()\n", "    raise KeyError('a\\tb')\n", "    raise UnicodeDecodeError('x', b'', 0, 1, 'y')\n",
    "    raise MemoryError\n", "    assert False\n", "    raise StopIteration\n", "    return input()\n", "    raise OSError(2, 'x', 'a\\nb')\n", "    raise RecursionError\n",
)
ODD_FIELDS = (
    ("steps=steps", "steps='10'"), ("steps=steps", "steps=10.5"), ("steps=steps", "steps=0"), ("steps=steps", "steps=-1"), ("steps=steps", "steps=True"),
    ("steps=steps", "steps=10**400"), ("steps=steps", "steps=float('nan')"), ("steps=steps", "step=steps"), ("seed=seed", "seed=2**80"), ("seed=seed", "seed=-1"),
    ("log_every=50", "log_every=0"), ("log_every=50", "log_every='x'"), ("eval_every=1 / 5", "eval_every=float('nan')"), ("eval_every=1 / 5", "eval_every=-1"),
    ("label_smoothing=0.1", "label_smoothing='x'"), ("label_smoothing=0.1", "label_smoothing=2"), ("label_smoothing=0.1", "label_smooth=0.1"),
    ('"softmax"', '"sofmax"'), ('"softmax"', "3"), ('on_bad_image="mask"', 'on_bad_image="msk"'), ("crop, batch_size", "crop, 'x'"), ("crop, batch_size", "crop, -8"),
    ("crop, batch_size", "None, batch_size"), ("ResNet(depth", "ResNet(19"), ("ResNet(depth", "ResNet('x'"), ("ResNet(depth", "RezNet(depth"), ("width=width", "width=0"),
    ("width=width", "width=-1"), ("width=width", "width=1e400"), ("width=width", "width=None"), ("head=Class", "hed=Class"), ("momentum", "momentun"),
    ("nesterov=True", "nesterov='yes'"), ("warmup=0.05", "warmup=5"), ("warmup=0.05", "warmup='x'"), ("weight_decay=5e-4", "weight_decay=[1]"),
    ('ImageFolder(root, "train")', '"photos"'), ('ImageFolder(root, "train")', "ImageFolder(3)"), ('ImageFolder(root, "train")', "ImageFolder"), ("evals={", "evals={3:"),
    ("evals={eval_split: ", "evals={'a/b': "), ("stem=\"half\"", 'stem="haf"'), ("BatchNorm(group=min(64, batch_size))", "'batch'"), ("SGD(", "object("), ("SGD(", "SGD(lambda: "),
)
ARGUMENTS = ("root=photos", "root=photos,size=32", "root=photos,steps=x", "root=", "", "root", "root=photos,nowhere=3", "root=photos,root=x", "root=photos,depth=1e9",
             "root=photos,width=nan", "root=photos,seed=9" + "9" * 30, "root='photos'", "root=pho,tos", "root=a=b", ",,,", "root=photos,steps=1_000", "root=\0", "root=é,size=-1",
             "root=photos,batch_size=0", "root=photos,width=1e400", "root=" + "a" * 5000, "root=photos;size=3", "root=photos, size=32", "=3", "root=~", "root=photos,size=")


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
    command = pick(rng, (("config", "show"), ("config", "show"), ("launch", "--cluster", f"{ROOT}/configs/clusters/slurm.toml"), ("config", "list", ".")))
    command = command if command[1] == "list" else (*command, f"config.py:{arguments}") if command[0] == "config" else ("launch", f"config.py:{arguments}", *command[1:])
    named = {"config.py", "photos", *re.findall(r"\w{4,}", SOURCE)}  # a class or a field will do
    return Case(command, tuple(named), what, check="fuzz.test_texts:equals_python")


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


COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("--steps", "--seed", "--workdir", "--mesh.fsdp", "--optimizer.learning-rate", "--train.batch-size", "--eval-every", "--save-every", "--watchdog", "--profile",
              "--grad-accum-steps", "--transfer.init", "--coordinator", "--processes", "--process", "--ema", "--max-checkpoints", "--train.workers"),
    "evaluate": ("--split", "--source", "--submission", "--step", "--import"), "probe": ("--train", "--test", "--kinds", "--shots", "--seeds", "--step"),
    "predict": ("--out", "--step", "--import"), "config show": ("--steps", "--seed", "--backbone.depth", "--head.label-smoothing"), "config list": (),
    "study": ("--workdir", "--only", "--jobs", "--import", "--list", "--gather"), "report": ("--out", "--table", "--row", "--metric", "--bootstrap"),
    "laws": ("--x", "--target-error", "--law", "--chance", "--bootstrap", "--figure"), "preflight": ("--topology", "--classes", "--decode-rate", "--share"),
    "launch": ("--cluster", "--name", "--out"), "data inspect": ("--out",), "data prepare": ("--name", "--splits", "--data-dir", "--processes", "--on-bad-image"),
    "data duplicates": ("--train", "--against", "--out", "--threshold", "--min-correlation"), "weights import": ("--out", "--classes"),
    "weights export": ("--to", "--out", "--step"), "bench step": ("--repeat", "--warm-up", "--classes"), "doctor": ("--workdir",), "": (), "nowhere": (), "data": (),
}
PLACES = ("nowhere.py", "photos", "photos/train/cat/0.jpg", "pipe.jpg", "zero.json", "zero.csv", "pipe.py", "folder.py", "/", "config.py", "config.py:", "config.py:root=nowhere",
          "config.py:root=photos", "http://[::1", "http://[::1]:1/x.safetensors", "file:///etc/passwd", "s3://x/y", "gs:", "hf:", "photos:split=nowhere", "photos:nowhere=1",
          "photos:held_out=7", "photos:held_out=nan", "emoji_scenes:images=-1", "emoji_scenes:images=1e9", "cifar10", "cifar10:9.9.9", "out.safetensors", "x.pth", ".py", ".py:",
          "configs", "quickstrat.py")


def commands(rng: np.random.Generator, number: int, folder: Path) -> Case:
    tree(folder / "photos", "train/cat/0.jpg", "train/dog/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
    (folder / "config.py").write_text(SOURCE)
    for kind, name in (("pipe", "pipe.jpg"), ("zero", "zero.json"), ("zero", "zero.csv"), ("pipe", "pipe.py"), ("folder", "folder.py")):
        special(kind, folder / name)
    odd = (*PLACES, *TEXTS, *(str(value) for value in NUMBERS if value != 10**400), "\udcff\udcfe", "a" * 5000, "--", "-", "--x", "--help=3", "1" * 5000, "\n", "=", "a=b", "@x")
    name = pick(rng, sorted(COMMANDS))
    words = [*name.split(), *(pick(rng, odd) for _ in range(int(pick(rng, (0, 1, 1, 1, 2)))))]
    for _ in range(int(pick(rng, (0, 1, 1, 2, 3)))):
        option = pick(rng, (*COMMANDS[name], "--nowhere", "--seed")) if COMMANDS[name] else "--nowhere"
        value = pick(rng, odd)
        words += pick(rng, ([option, value], [f"{option}={value}"], [option], [option.upper(), value], [f"{option}x", value]))
    if name in ("train", "bench step", "doctor") and "config.py:root=photos" in words:
        words += ["--steps=0"]  # not to train for minutes
    named = tuple(word.split("=")[0][:40].strip("-").encode("unicode_escape").decode() for word in words if word.strip("-= \n")) + ("bvl",)
    return Case(tuple(words), named, ascii(" ".join(words))[:150], check=None)


@harness.formats(130, 7, curves=curves)
def test_curves(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)


@harness.formats(130, 7, clusters=clusters)
def test_clusters(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)


@harness.formats(170, 8, configs=configs)
def test_configs(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)


@harness.formats(250, 12, commands=commands)
def test_commands(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
