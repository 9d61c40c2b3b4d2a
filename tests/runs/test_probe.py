"""Probes of a run, as it trains and afterwards, and its features."""

import json
import pickle
import re

import numpy as np
import pytest

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.cli import main
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.features import Embedder
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.probe import Probe, features


@pytest.mark.parametrize("wrong", [{"shots": ()}, {"shots": (5, 0)}, {"seeds": (-1,)}, {"seeds": ()}, {"kinds": ()},
                                   {"neighbours": 0}])
def test_probes_of_nothing_are_refused(wrong):
    inputs = Input(EmojiScenes("train", 8, size=32), Resize(32), 8)
    Probe(inputs, inputs)
    (name, value), = wrong.items()
    with pytest.raises(UserError, match=re.escape(f"Probe: {name}={value}; expected")):
        Probe(inputs, inputs, **wrong)


def test_a_run_is_probed_in_training_and_afterwards(tmp_path, capsys):
    def inputs(split, images, objects=(1, 1)):
        return Input(EmojiScenes(split, images, size=32, classes=4, objects=objects, zipf=0), Resize(32), 8)

    probe = Probe(inputs("train", 60), inputs("test", 21), ("few_shot", "neighbours", "linear"), (1, 3), (0, 1))
    run = tmp_path / "run"
    results = train(Experiment(
        inputs("train", 16), {"validation": inputs("validation", 8)}, ResNet(10, width=1 / 16, stem="half"),
        Classification("softmax"), SGD(0.01), steps=1, probes={"probe": probe}), run)
    names = {"few_shot_1", "few_shot_3", "neighbours_20", "linear"}
    assert names <= {key.removeprefix("probe/") for key in results}
    spec = "emoji_scenes:split={},images={},size=32,classes=4,objects=1,1,zipf=0"
    command = ["probe", str(run), "--train", spec.format("train", 60), "--test", spec.format("test", 21)]
    command += ["--shots", "1", "3", "--seeds", "0", "1"]
    capsys.readouterr()
    assert main(command) == 0 and "few shot 3" in capsys.readouterr().out
    again = json.loads((run / "probes" / "1.json").read_text())
    assert {name: again[name] for name in names} == {name: results[f"probe/{name}"] for name in names}
    assert main([*command, "--random"]) == 0
    random = json.loads((run / "probes" / "random.json").read_text())
    assert any(random[name] != again[name] for name in names)
    trainer, state, _ = open_run(run)
    dataset = probe.test.open()
    images = np.stack([batch["image"] for batch in trainer.batches(probe.test, dataset, None)][:1])[0]
    expected = features(trainer, state.eval_params, state.batch_stats, probe.test, dataset).values[: len(images)]
    embedder = pickle.loads(pickle.dumps(Embedder(run)))
    assert embedder.size == 32
    np.testing.assert_allclose(embedder(images), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"train images have any number of labels"):
        Probe(inputs("train", 60, (1, 2)), inputs("test", 20)).run(None, {}, {})
