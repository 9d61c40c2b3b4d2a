"""Launching: scripts as they were read and approved, run with stand-ins for the clouds' programs, which record what
they get."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from big_vision_lite.commands.launch import launch
from big_vision_lite.errors import UserError
from big_vision_lite.launch.clusters import Data, Local, SkyPilot, Slurm, read
from big_vision_lite.launch.render import name_of, render

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens" / "launch"
CLUSTERS = HERE.parent / "configs" / "clusters"
HARD = "it's $(touch stolen) `touch stolen` \"c\"; touch stolen"


def made():
    spec = importlib.util.spec_from_file_location("make_launch_goldens", GOLDENS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.renderings()


def test_renderings_are_the_approved_ones():
    renderings = made()
    kept = {path.name: path.read_text() for path in GOLDENS.iterdir() if path.suffix in (".sh", ".sbatch", ".yaml")}
    assert renderings.keys() == kept.keys()
    for name, text in renderings.items():
        assert text == kept[name], f"{name}: run {GOLDENS / 'make.py'} and read what changed"


def test_shell_is_well_formed(tmp_path):
    for name, text in made().items():
        if name.endswith(".yaml"):
            task = yaml.safe_load(text)
            pieces = {part: f"#!/bin/bash\n{task[part]}" for part in ("setup", "run")}
            assert task["file_mounts"]["/data"] == {"source": "gs://my-bucket/tensorflow_datasets", "mode": "COPY"}
        else:
            pieces = {"all": text}
        for part, script in pieces.items():
            path = tmp_path / f"{name}.{part}"
            path.write_text(script)
            subprocess.run(["bash", "-n", path], check=True)
            if shellcheck := shutil.which("shellcheck", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}"):
                done = subprocess.run([shellcheck, "--severity=warning", path], capture_output=True, text=True)
                assert done.returncode == 0, done.stdout


def test_words_that_yaml_would_read_otherwise(tmp_path):
    hard = {"A": "no", "B": "1:30", "C": "~", "D": "a \nb: c\n\n d\n", "E": "é: # x", "F": HARD, "G": "x" * 200 + " y"}
    cluster = SkyPilot("/runs", hard, accelerators="H100:8", data=(Data("gs://a/it's", "/b: c #", "copy"),))
    task = yaml.safe_load(render(cluster, "a-run", "x.py", [HARD]).files["task.yaml"])
    assert task["envs"] == hard and list(task["file_mounts"]) == ["/b: c #"] and "infra" not in task["resources"]


class Fakes:
    """Programs on PATH that write down how they were called; each may do more."""

    def __init__(self, root: Path):
        self.root, self.record = root, root / "record"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.record.touch()
        self.add("sleep")

    def add(self, name: str, body: str = "", folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        # In one piece: several may be called at once.
        note = f"printf '%s\\n' \"$(printf '%s\\037' \"${{0##*/}}\" \"$@\")\" >>'{self.record}'"
        path.write_text(f"#!/bin/bash\n{note}\n{body}\n")
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "FAKES": str(self.root)}

    def run(self, *command, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.root, env=self.environment | environment, capture_output=True,
                              text=True, timeout=60)

    def calls(self, name: str) -> list[list[str]]:
        calls = [line.split("\037")[:-1] for line in self.record.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]


@pytest.fixture
def fakes(tmp_path) -> Fakes:
    return Fakes(tmp_path)


def test_gcloud_asks_again_after_a_preemption_and_gives_back(fakes):
    # States as looks follow each other; the run says that it is done at the eighth.
    fakes.add("gcloud", r"""
count="$FAKES/looks"
case "$*" in
  *" describe "*)
    echo x >>"$count"
    states=(none WAITING_FOR_RESOURCES ACTIVE SUSPENDED none PROVISIONING ACTIVE ACTIVE)
    state=${states[$(($(wc -l <"$count") - 1))]}
    if [[ $state == none ]]; then echo 'ERROR: NOT_FOUND' >&2; exit 1; fi
    echo "$state" ;;
  "storage ls"*finished) [[ -e $count ]] && (($(wc -l <"$count") >= 7)) ;;
  "storage ls"*) exit 1 ;;
esac""")
    done = fakes.run("bash", GOLDENS / "hard.launch.sh")
    assert done.returncode == 0, done.stderr
    assert "the run is done: gs://bucket/my runs/hard-run" in done.stdout
    verbs = [call[3] for call in fakes.calls("gcloud") if call[2:3] == ["queued-resources"]]
    assert [verb for verb in verbs if verb != "describe"] == ["create", "delete", "create", "delete"]
    create = next(call for call in fakes.calls("gcloud") if "create" in call)
    assert create[3:] == [
        "create", "hard-run", "--node-id=hard-run", "--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base",
        f"--metadata-from-file=startup-script={GOLDENS / 'startup.sh'}", "--service-account=me@example.org",
        "--network=default", "--project=a project; rm -rf /", "--zone=us-central2-b"]


def test_startup_brings_code_and_data_and_goes_on_after_a_crash(fakes):
    root, venv = fakes.root / "bvl", fakes.root / "made_venv"
    venv.mkdir()
    # Training dies once, and finishes when it is started again.
    fakes.add("python", 'printf %s "$GREETING" >"$FAKES/greeting"\n[[ -e $FAKES/died ]] || { touch "$FAKES/died"; '
              'exit 137; }', venv)
    fakes.add("python3", 'if [[ "$*" == *" venv "* ]]; then mkdir -p "$BVL_ROOT/venv/bin"; '
              'cp "$FAKES/made_venv/python" "$BVL_ROOT/venv/bin/"; fi')
    fakes.add("git", 'if [[ $1 == clone ]]; then mkdir -p "${@: -1}"; fi')
    fakes.add("curl", "echo 0")
    fakes.add("gcloud")
    fakes.add("gcsfuse")
    fakes.add("mountpoint", "exit 1")
    # What would be made outside the test's folder is only written down.
    fakes.add("mkdir", 'case "${*: -1}" in /data*|/other|/labels) ;; *) /bin/mkdir "$@" ;; esac')
    settings = {"BVL_ROOT": str(root), "BVL_LOG": str(fakes.root / "log")}
    done = fakes.run("bash", GOLDENS / "hard.startup.sh", **settings)
    log = (fakes.root / "log").read_text()
    assert done.returncode == 0, log
    want = ["-m", "big_vision_lite", "train", "configs/pretrain/imagenet1k.py:depth=50,data_dir=/data", "--workdir",
            "gs://bucket/my runs/hard-run", "--train.source.name", "it's $(a) `b` \"c\"; d", "--steps", "7"]
    assert fakes.calls("python") == [want, want] and "ended with 137" in log
    assert (fakes.root / "greeting").read_text() == "it's `date` \"$HOME\""
    assert fakes.calls("git")[0] == ["clone", "--quiet", "--", "https://example.org/$(touch stolen)/it's.git",
                                     str(root / "code")]
    assert fakes.calls("gcsfuse") == [
        ["--implicit-dirs", "-o", "ro", "--only-dir", "images of cats", "bucket", "/data/it's here"],
        ["--implicit-dirs", "-o", "ro", "other", "/other"]]
    assert fakes.calls("gcloud") == [
        ["storage", "rsync", "--recursive", "gs://bucket/labels", "/labels"],
        ["storage", "cp", str(root / "mark"), "gs://bucket/my runs/hard-run/launch/finished"]]
    assert not list(fakes.root.rglob("stolen"))
    # A host that starts again installs nothing anew.
    installs = len(fakes.calls("git")), len(fakes.calls("python3"))
    assert fakes.run("bash", GOLDENS / "hard.startup.sh", **settings).returncode == 0
    assert (len(fakes.calls("git")), len(fakes.calls("python3"))) == installs


def test_slurm_queues_again_what_was_told_to_save(fakes):
    cluster = Slurm("/runs", {"X": HARD}, directory=str(fakes.root), time="1:00:00", setup=("true",),
                    python="/a b/python", data=(Data("/far/it's", "/near/it's", "copy"),))
    (fakes.root / "job").write_text(render(cluster, "a-run", "x.py", [HARD]).files["job.sbatch"])
    fakes.add("srun", 'case "$*" in *train*) printf %s "$X" >"$FAKES/x"; exit "${CODE:-0}" ;; esac')
    fakes.add("scontrol")
    for code, restarts, again in (("0", "0", []), ("1", "0", []), ("75", "20", []), ("75", "19", [["requeue", "77"]]),
                                  ("143", "99", [["requeue", "77"]] * 2)):
        came = fakes.run("bash", "job", CODE=code, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts)
        assert came.returncode == int(code)
        assert fakes.calls("scontrol") == again
    copied, trained = fakes.calls("srun")[1:3]
    assert copied[3:] == ["rsync", "-a", "--", "/far/it's/", "/near/it's"]
    assert trained == ["--wait=300", "/a b/python", "-m", "big_vision_lite", "train", "x.py", "--workdir",
                       "/runs/a-run", HARD]
    assert (fakes.root / "x").read_text() == HARD and not (fakes.root / "stolen").exists()


@pytest.mark.parametrize(("kind", "program", "want"), [
    ("skypilot", "sky", ["jobs", "launch", "--yes", "--detach-run", "{out}/task.yaml"]),
    ("slurm", "sbatch", ["{out}/job.sbatch"])])
def test_run_hands_the_script_over(kind, program, want, fakes, monkeypatch):
    fakes.add(program, "exit 5")
    monkeypatch.setenv("PATH", f"{fakes.bin}:{os.environ['PATH']}")
    monkeypatch.chdir(HERE.parent)
    out = fakes.root / "out"
    arguments = ["configs/quickstart.py", "--on", str(CLUSTERS / f"{kind}.toml"), "--run", "--out", str(out)]
    assert launch([*arguments, "--steps", "7"]) == 5
    assert fakes.calls(program) == [[word.replace("{out}", str(out)) for word in want]]
    assert "--steps 7" in next(out.iterdir()).read_text()


def test_local_processes_end_together(fakes):
    # The second fails once the first listens: a signal before that would end it unsaved.
    fakes.add("python", 'if [[ "${*: -1}" == 1 ]]; then\n  until [[ -e $FAKES/listens ]]; do /bin/sleep 0.05; done\n'
              '  exit 3\nfi\ntrap "echo saved >$FAKES/saved; exit 143" TERM\necho >$FAKES/listens\n'
              'for i in {1..300}; do /bin/sleep 0.1; done')
    cluster = Local("runs", processes=2, python=str(fakes.bin / "python"))
    rendered = render(cluster, "two", "configs/quickstart.py", [HARD])
    (fakes.root / "run.sh").write_text(rendered.files["run.sh"])
    assert fakes.run("bash", "run.sh").returncode == 3
    assert (fakes.root / "saved").exists()
    together = ["--coordinator", "127.0.0.1:8476", "--processes", "2", "--process"]
    assert sorted(fakes.calls("python")) == [
        ["-m", "big_vision_lite", "train", "configs/quickstart.py", "--workdir", "runs/two", HARD, *together, process]
        for process in ("0", "1")]


def test_local_really_trains(tmp_path):
    (tmp_path / "here.toml").write_text(f'kind = "local"\nruns = "{tmp_path}/runs"\n'
                                        '[environment]\nJAX_NUM_CPU_DEVICES = "1"\n')
    config = tmp_path / "tiny.py"
    config.write_text("""from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD

def get_config(steps: int = 1) -> Experiment:
    train = Input(EmojiScenes("train", 8, size=16, classes=2), PadCrop(16, pad=0), 4, threads=1)
    return Experiment(train, {}, ResNet(10, width=1 / 16), Classification(), SGD(0.1), steps)
""")
    assert launch([f"{config}:steps=2", "--on", str(tmp_path / "here.toml"), "--out", str(tmp_path / "out"), "--run",
                   "--train.threads", "2"]) == 0
    assert json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())["step"] == 2


def test_printed_by_default(monkeypatch, capsys):
    monkeypatch.chdir(HERE.parent)
    assert launch(["configs/quickstart.py", "--on", str(CLUSTERS / "gcloud.toml"), "--steps", "9"]) == 0
    said = capsys.readouterr().out
    assert "==> launch.sh <==" in said and "gs://my-bucket/runs/quickstart --steps 9" in said
    assert said.endswith("bash launch.sh\n")


@pytest.mark.parametrize(("text", "said"), [
    ('kind = "slrum"', "did you mean 'slurm'"),
    ('kind = "local"\nruns = "x"\nproceses = 2', "no key 'proceses'; did you mean 'processes'"),
    ('kind = "local"', "'runs' is missing"),
    ('kind = "local"\nruns = "x"\nprocesses = "2"', "processes='2'; expected int"),
    ('kind = "local"\nruns = "x"\n[environment]\n"A-B" = "c"', "'A-B' is no name of a variable"),
    ('kind = "local"\nruns = "a\\nb"', "cannot be printed"),
    ('kind = "slurm"\nruns = "x"\ndirectory = "/x"\ntime = "1 --wrap=x"', "time='1 --wrap=x'"),
    ('kind = "slurm"\nruns = "x"\ndirectory = "/x"\ntime = "1"\n[[data]]\nsource = "a"\ntarget = "/b"\nmod = "copy"',
     "no key 'data[0].mod'; did you mean 'mode'"),
    ('kind = [', "not valid TOML")])
def test_faults_in_a_cluster_are_named(text, said, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read(path)
    assert said in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_a_cluster_cannot_keep_is_refused(tmp_path):
    gcloud = read(CLUSTERS / "gcloud.toml")
    for change, said in (({"runs": "/home/runs"}, "keeps its runs at gs://"),
                         ({"revision": "--upload-pack=x"}, "revision="),
                         ({"data": (Data("/disk", "/x"),)}, "read from gs://")):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(gcloud, **change)
    for name, config, overrides, said in (("Bad_Name", "x.py", [], "as clouds want it"),
                                          ("x", "/home/me/x.py", [], "a path within it"),
                                          ("x", "x.py", ["a\nb"], "cannot be printed"),
                                          ("x", "x.py", ["--workdir", "/x"], "keeps its runs")):
        with pytest.raises(UserError, match=said):
            render(gcloud, name, config, overrides)
    with pytest.raises(UserError, match="did you mean"):
        read(CLUSTERS / "gclod.toml")
    assert name_of("configs/pretrain/ImageNet_1k.py:depth=50") == "imagenet-1k"


def test_a_host_that_cannot_start_says_so(fakes):
    fakes.add("curl", "echo 3")
    fakes.add("python3", "exit 1")
    fakes.add("gcloud")
    done = fakes.run("bash", GOLDENS / "gcloud.startup.sh", BVL_ROOT=str(fakes.root / "bvl"),
                     BVL_LOG=str(fakes.root / "log"))
    assert done.returncode == 1 and len(fakes.calls("sleep")) == 4
    assert fakes.calls("gcloud")[-1][-1] == "gs://my-bucket/runs/gcloud-run/launch/failed"
    assert "host 3 cannot start" in (fakes.root / "bvl" / "mark").read_text()
