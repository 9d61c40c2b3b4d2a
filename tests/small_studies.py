"""A study of small runs, and a stand-in for the process of a run."""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.scaling.studies.study import Run, Study
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.transfer import Transfer

TRAINER = '''
"""Trains nothing, but leaves a run's folder as the loop does: config, checkpoints, metrics and run.json."""
import json, os, sys, time
from pathlib import Path
from big_vision_lite.system.ownership import own
config, folder, pace = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
owned = own(folder, patience=60)
if os.environ.get("FAIL") == folder.name:
    print("bvl: no such thing"); sys.exit(2)
if os.environ.get("FAIL_ONCE") == folder.name and not (folder / "tried").exists():
    folder.mkdir(exist_ok=True); (folder / "tried").touch(); os.kill(os.getpid(), 9)
folder.mkdir(exist_ok=True)
values = json.loads(config.read_text())
init = values["transfer"]["init"]
assert init is None or "results" in json.loads((Path(init) / "run.json").read_text()), "started too early"
(folder / "config.json").write_text(config.read_text())
steps = values["steps"]
start = max([int(p.name) for p in (folder / "checkpoints").glob("[0-9]*")], default=0)
for step in range(start + 1, steps + 1):
    time.sleep(pace)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
    if step % 5 == 0:
        (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
images = values["train"]["curate"][0]["images"] if values["train"]["curate"] else 40
(folder / "data.json").write_text(json.dumps({"images": images, "classes": ["a", "b"], "fingerprint": f"f{images}",
                                              "multi_label": True, "sha256": ""}))
metrics = {"validation/mAP": 1 - 1 / images, "validation/images": 20}
if os.environ.get("NO_METRICS") == folder.name:
    metrics = {}
(folder / "run.json").write_text(json.dumps({
    "format": 2, "step": steps, "versions": {"jax": "1"}, "wall_seconds": time.time() % 7, "results": metrics,
    "main_metric": {"name": "mAP", "direction": "higher", "unit": ""}}))
'''


def small_experiment(images: int = 40, init: str | None = None, steps: int = 20, **more) -> Experiment:
    def inputs(split: str, count: int, transform, curate=()) -> Input:
        return Input(EmojiScenes(split, count, size=32, classes=6), transform, 16, curate=curate)

    more = {"transfer": Transfer(init, freeze=("backbone",) if init else ()), "head": Classification(), **more}
    return Experiment(train=inputs("train", 64, RandomCropPadded(32, pad=4), (NestedSubset(images),)),
                      evals={"validation": inputs("validation", 20, Resize(32))},
                      backbone=ResNet(10, width=1 / 16, stem="half"), optimizer=SGD(0.05), steps=steps, log_every=1,
                      save_every=5, **more)


def small_study(steps: int = 20) -> Study:
    runs = []
    for images in (20, 40):
        runs += [Run(f"frozen,{images}", small_experiment(64, f"run:{images}", steps)),  # listed before what it needs
                 Run(f"{images}", small_experiment(images, steps=steps), factors={"images": images})]
    return Study("small", tuple(runs))
