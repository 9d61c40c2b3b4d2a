"""A run that several tests look at."""

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory):
    """A run that has learned from nine photos of three colours, the folder of all photos, and its experiment."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(45):
        for split in ("train", "val")[: 1 if number >= 9 else 2]:
            pixels = rng.integers(0, 120, (12, 12, 3), np.uint8)
            pixels[:, :, 2 - number % 3] += 70
            folder = root / split / CLASSES[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    inputs = Input(ImageFolder(str(root), "train"), RandomCropPadded(12, pad=2), 8,
                   curate=(NestedSubset(9, stratified=True),))
    experiment = Experiment(inputs, {"val": Input(ImageFolder(str(root), "val"), Resize(12), 8)},
                            ResNet(10, width=1 / 16, stem="half"), Classification("softmax"), SGD(0.1), steps=6)
    run = root.parent / "colour_run"
    train(experiment, run)
    return run, root, experiment
