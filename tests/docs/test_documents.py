"""What the documents say is true: commands parse, Python runs, links lead somewhere, quoted errors exist."""

import ast
import dataclasses
import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

import big_vision_lite
from big_vision_lite import config
from big_vision_lite.cli import COMMANDS, main
from big_vision_lite.commands import arguments
from big_vision_lite.data.curation.steps import ClassSubset, Curation, Exclude, LabelNoise, NestedSubset, curation
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.launch.accelerators import parse_topology
from big_vision_lite.scaling.paper.tables import TABLES
from big_vision_lite.scaling.studies.study import Study
from big_vision_lite.training.loop import train

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "big_vision_lite"
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
             *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLOUD = "cloud"
"""In the first line of a block: its commands start something on other machines."""

pytestmark = pytest.mark.usefixtures("compile_once")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a document."""

    file: str
    line: int
    language: str
    tags: tuple[str, ...]
    text: str


def blocks(file: Path, language: str) -> list[Block]:
    """The fenced blocks of a language; for bash also indented lines that begin with ``bvl``, or with ``...`` where they
    continue such a line."""
    found, text = [], file.read_text()
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        first, *tags = match[1].split() or [""]
        assert first in ("bash", "python", "text"), f"{file.name}: a block of {match[1]!r}; say bash, python or text"
        found.append(Block(file.name, text[:match.start()].count("\n") + 1, first, tuple(tags), match[2]))
    start = ""
    for number, line in enumerate(text.splitlines(), 1):
        if indented := re.match(r" {4}(?:(bvl)|\.\.\.) (?=\S)", line):
            start = " ".join(line.split()[:3]) if indented[1] else start
            whole = line.strip() if indented[1] else line.strip().replace("...", start, 1)
            found.append(Block(file.name, number, "bash", (CLOUD,), whole + "\n"))
    return [block for block in found if block.language == language]


def commands(text: str) -> list[str]:
    """The command lines of a shell text, without comments, which follow ``#`` or two spaces."""
    lines = re.sub(r"\\+\n\s*", "", text).splitlines()
    return [command.strip() for line in lines
            for command in re.sub(r"(^|\s)\s*#.*|(?<=\S) {2,}.*", "", line).split("&&") if command.strip()]


def filled_in(command: str) -> str:
    """The command with values instead of placeholders."""
    command = re.sub(r" \[overrides[^]]*\]", "", command).replace("FILE.py[:argument=value,...]", "STUDY")
    if not command.startswith("pip"):
        command = re.sub(r"[][]", "", re.sub(r"(?<=[a-z])\|\S+", "", command))  # the first of several choices
    values = {"CONFIG": "configs/quickstart.py", "STUDY": "configs/studies/quickstart.py", "RUN": "runs/quickstart",
              "NAME": "named", "HOST:PORT": "10.0.0.2:8476", "N": "2", "I": "0", "SECONDS": "60"}
    command = command.replace("rates=runs/rates/results.csv", f"rates={ROOT}/docs/results/surface/photos_rates.csv")
    return " ".join(values.get(word, word) for word in command.split(" "))


class Parsed(BaseException):
    """A command was parsed, and stops there."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the documents' commands assume: a clone, with the runs they name."""
    for name in ("configs", "docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    texts = "\n".join(file.read_text() for file in (*DOCUMENTS, *CONFIGS))
    resolved = config.dumps(config.load(str(ROOT / "configs" / "quickstart.py")))
    for name in {"quickstart", *re.findall(r"\bruns/(\w+)", texts)}:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(resolved)
    for block in blocks(ROOT / "docs" / "heads.md", "python"):
        for text, name in (("class Counting", "counting.py"), ("import Counting", "count_scenes.py")):
            if text in block.text:
                (tmp_path / name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("counting", None)


@pytest.fixture
def check_command(place, monkeypatch, capsys):
    """Lets the command line parse a command and load its config or study, and stops there. ``bvl launch`` prints its
    scripts, whose commands are checked as well."""
    real, seen = arguments.parse, set()

    def parse(kind, given, program, default=None, description=None):
        # A config has many options, slow to parse. Most commands have none of them, and need it once.
        options = (description or kind, *(word.partition("=")[0] for word in given if word.startswith("--")))
        launching = program.startswith("bvl launch")
        if options[1:] in ((), ("--workdir",)) and options in seen and not launching:
            raise Parsed
        parsed = real(kind, given, program, default, description)
        seen.add(options)
        for part in (parsed, *vars(parsed).values()):  # several sets of options may be parsed at once
            if getattr(part, "topology", None):
                parse_topology(part.topology)
            assert getattr(part, "table", None) in (None, *TABLES)
        if launching:
            return parsed
        raise Parsed

    names = {command.function.partition(".")[0] for command in COMMANDS.values()} | {"arguments"}
    # All are imported before one is changed: a module imported later would take the changed function for its own.
    for module in [importlib.import_module(f"big_vision_lite.commands.{name}") for name in names]:
        monkeypatch.setattr(module, "parse", parse, raising=False)

    def check(command: str, cloud: bool = True) -> None:
        words = shlex.split(command)
        if words[1] == "launch":
            assert cloud, f"tag the block with {CLOUD!r}"
            assert main(shlex.split(re.sub(r" --run\b| --out \S+", "", command))[1:]) == 0, capsys.readouterr().err
            printed = capsys.readouterr().out
            for file, script in re.findall(r"^==> (\S+) <==\n((?:(?!==>).*\n)*)", printed, re.MULTILINE):
                subprocess.run(["bash", "-n"], input=script, text=True, check=not file.endswith(".yaml"))
            started = re.findall(r"-m big_vision_lite (train (?:(?! &$| \|\|).)+)", printed, re.MULTILINE)
            assert started
            for training in started:
                check(f"bvl {training}")
            return
        try:
            code = main(words[1:])
        except Parsed:
            code = 0
        except SystemExit as end:
            code = end.code
        assert code == 0, capsys.readouterr().err

    return check


def check_line(command: str, check_command, cloud: bool) -> None:
    """Check a command of a document. Raises: AssertionError when it is wrong, or of a program without a check."""
    program = command.split()[0]
    if program == "bvl":
        check_command(filled_in(command), cloud)
    elif program == "pip":
        extras = {extra for listed in re.findall(r"\[([\w,]+)\]", command) for extra in listed.split(",")}
        assert extras <= PROJECT["optional-dependencies"].keys(), command
    elif program in ("pytest", "ruff", "pyright", "pre-commit", "python", "git", "export"):
        paths = re.findall(r"(?<=\s)(?:benchmarks|big_vision_lite|colabs|configs|docs|tests|tools)/\S+", command)
        assert all((ROOT / path).exists() for path in paths), command
    elif program == "tfds":
        assert command.split()[1] == "build"
    elif command.startswith("gcloud compute tpus tpu-vm ssh "):
        check_command(shlex.split(command.replace("CONFIG", "configs/quickstart.py"))[-1], cloud)
    else:
        raise AssertionError(f"no check for a command of {program!r}")


def test_commands_parse(check_command):
    wrong, count = [], 0
    lines = [(block.file, block.line, command, CLOUD in block.tags) for file in DOCUMENTS
             for block in blocks(file, "bash") for command in commands(block.text)]
    for file in CONFIGS:
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        shown = "\n".join(re.findall(r"^    bvl (?:.*\\\n)*.*$", text, re.MULTILINE))
        lines += [(str(file.relative_to(ROOT)), 1, command, True) for command in commands(shown)]
    for file, line, command, cloud in lines:
        try:
            check_line(command, check_command, cloud)
            count += 1
        except AssertionError as error:
            wrong.append(f"{file}:{line}: {command}: {error}")
    assert count > 100 and not wrong, "\n".join(wrong)


def test_python_of_the_documents_runs(place):
    """Except the head of docs/heads.md and all of docs/api.md, which have their own tests."""
    names = {"Input": Input, "source": EmojiScenes("train", 24), "transform": Resize(32), "curation": curation,
             "Exclude": Exclude, "ClassSubset": ClassSubset, "NestedSubset": NestedSubset, "LabelNoise": LabelNoise}
    ran = []
    for file in DOCUMENTS:
        for block in blocks(file, "python"):
            if "Counting" in block.text or block.file == "api.md":
                continue
            here = dict(names)
            exec(compile(block.text, f"{block.file}:{block.line}", "exec"), here)
            if "get_study" in here:
                assert isinstance(here["get_study"](), Study)
            if "curate" in here:
                assert all(isinstance(step, Curation) for step in here["curate"])
            ran.append(block.file)
    assert {"README.md", "curation.md", "data.md", "heads.md", "studies.md"} <= set(ran)


def test_the_head_of_the_documents(place, capsys):
    experiment = config.load("count_scenes.py:steps=2")
    view = dataclasses.replace(experiment.train, source=EmojiScenes("train", 16, size=32, classes=4), batch_size=8,
                               transform=Resize(32), curate=())
    backbone = dataclasses.replace(experiment.backbone, depth=10, width=1 / 16,
                                   norm=dataclasses.replace(experiment.backbone.norm, group=None))
    small = dataclasses.replace(experiment, train=view, evals={"test": view}, backbone=backbone, log_every=1,
                                eval_every=None, optimizer=dataclasses.replace(
                                    experiment.optimizer,
                                    schedule=dataclasses.replace(experiment.optimizer.schedule, warmup=0)))
    run = place / "runs" / "counted"
    results = train(small, run)
    assert results["test/images"] == 16 and results["test/r2"] <= 1
    assert (run / "predictions.png").is_file()
    Image.new("RGB", (40, 30)).save("photo.jpg")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2 and "--import counting" in capsys.readouterr().err
    assert main(["predict", str(run), "photo.jpg", "--import", "counting"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["count"], float)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_links_lead_somewhere():
    lost = []
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] not in "_."]
    for file in DOCUMENTS:
        prose = re.sub(r"^```.*\n(?:.*\n)*?```$|^ {4}.*$", "", file.read_text(), flags=re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
            if not target.startswith("https://") and not (file.parent / target).exists():
                lost.append(f"{file.name}: {target}")
        folders = "benchmarks|big_vision_lite|colabs|configs|docs|tests|tools"
        named = re.findall(rf"(?<![\w/.:$-])(?:{folders})/[\w./*-]*\w/?", prose)
        for target in named + re.findall(rf"(?<![\w/.:$-])(?:{'|'.join(rooms)})/[\w/]+\.py", prose):
            if not any(list(base.glob(target.rstrip("/"))) for base in (ROOT, PACKAGE)):
                lost.append(f"{file.name}: {target}")
        lost += [f"{file.name}: extra {extra}" for extra in re.findall(r"(?:extra `|big_vision_lite)\[(\w+)\]", prose)
                 if extra not in PROJECT["optional-dependencies"]]
    assert not lost, lost


def possible_texts(node: ast.AST, functions: dict[str, ast.FunctionDef]) -> list[str]:
    """The texts that an expression may be, with … for what varies."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        right = possible_texts(node.right, functions) if not isinstance(node.right, ast.IfExp) else ["…"]
        return [text + other for text in possible_texts(node.left, functions) for other in right]
    if isinstance(node, ast.IfExp):
        return possible_texts(node.body, functions) + possible_texts(node.orelse, functions)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in functions:
        inside = ast.walk(functions[node.func.id])
        return [text for part in inside if isinstance(part, ast.Return) and part.value is not None
                and not isinstance(part.value, ast.Call) for text in possible_texts(part.value, functions)] or ["…"]
    return ["…"]


def messages() -> list[str]:
    """What the errors for users say."""
    kinds, trees, texts = {"UserError", "BadImageError"}, [], []
    for path in (*sorted(PACKAGE.rglob("*.py")), *CONFIGS):
        trees.append(ast.parse(path.read_text()))
        kinds |= {node.name for node in ast.walk(trees[-1]) if isinstance(node, ast.ClassDef)
                  and any(getattr(base, "id", "") in kinds for base in node.bases)}
    for tree in trees:
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            kind = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if kind in kinds and node.args:
                verb = {"BadImageError": "read", "UnusableImageError": "used"}.get(kind)
                texts += [f"image … cannot be {verb}: {text}" if verb else text
                          for text in possible_texts(node.args[1 if verb else 0], functions)]
            elif kind in ("reading", "writing"):
                verb, (what, *advice) = kind.removesuffix("ing").replace("writ", "write"), node.args
                texts += [f"cannot {verb} {text}: …; {hint}" for text in possible_texts(what, functions)
                          for hint in (possible_texts(advice[0], functions) if advice else ["…"])]
    return texts


def test_quoted_errors_exist():
    quotes, is_table = [], False
    for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines():
        is_table = (line == "| message | what to do |" or is_table) and line.startswith("|")
        if is_table and line.startswith("| `"):
            quotes += re.findall(r"(?:^\| |<br>)`(.+?)`(?=<br>| \|)", line)
    known = messages()
    assert len(quotes) > 30 and len(known) > 400
    stale = [quote for quote in quotes if len(re.sub(r"expected|[^A-Za-z]", "", quote)) < 4
             or not any(re.search(".*".join(map(re.escape, quote.split("…"))), text) for text in known)]
    assert not stale, "no error says this any more:\n" + "\n".join(stale)


MODULES_WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", MODULES_WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    for name, value in vars(module).items():  # one by one: what checks signatures hides functions from doctest.testmod
        if getattr(value, "__module__", "") == module.__name__ and callable(value):
            for test in finder.find(value, name, module=False, globs=dict(vars(module))):
                runner.run(test)
    assert runner.tries and not runner.failures


@pytest.mark.slow
def test_reference_is_built(tmp_path):
    """Without a warning but those of annotations that pdoc cannot resolve: of NamedTuples, of fields that dataclasses
    inherit from other modules, and of TFDS's classes."""
    pytest.importorskip("pdoc")
    command = next(command for block in blocks(ROOT / "CONTRIBUTING.md", "bash") for command in commands(block.text)
                   if "pdoc" in command)
    words = [sys.executable, *shlex.split(command)[1:]]
    words[words.index("-o") + 1] = str(tmp_path / "api")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    known = r"Error parsing type annotation (ForwardRef\('np\.ndarray'\)|BoxCount|.*\butils\.VersionOrStr)"
    others = [line for line in done.stderr.splitlines() if "Warn" in line and not re.search(known, line)]
    assert done.returncode == 0 and not others, done.stderr
    assert (tmp_path / "api" / "big_vision_lite" / "heads" / "head.html").is_file()


def test_version_and_citation():
    version = big_vision_lite.__version__
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["version"] == version and cited["license"] == PROJECT["license"]
    assert {"title", "message", "authors", "type"} <= cited.keys()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
             for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} >= {"ruff", "pyright"}
