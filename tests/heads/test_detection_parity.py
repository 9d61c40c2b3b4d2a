"""Copied weights give torchvision's detections. Those of the small detector are stored; the other tests are skipped
without torchvision."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.training.step import merge, split
from big_vision_lite.training.trees import flatten
from big_vision_lite.weights import convert, naming

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "detection" / "make.py"))
DATA = SavedDatasetInfo(("a", "b", "c"), True, "", 1, "")


def filled(head, depth, values):
    """Structure and arrays of the head on a ResNet with torchvision's weights."""
    backbone = ResNet(depth, pixels=naming.IMAGENET)
    graphdef, *arrays = split(nnx.eval_shape(lambda: head.build(backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(arrays).items()}
    body = {name.removeprefix("backbone.body."): value for name, value in values.items() if ".body." in name}
    loaded = convert.to_ours(body, {name: leaf for name, leaf in like.items() if name.startswith("backbone.")})
    if isinstance(head.variant, FPN):
        loaded |= MAKE["detector_arrays"](values)
    else:  # torchvision has no such head
        loaded |= {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in like.items() if name not in loaded}
    assert {name: leaf.shape for name, leaf in like.items()} == {name: value.shape for name, value in loaded.items()}
    return graphdef, jax.tree.unflatten(jax.tree.structure(arrays), [loaded[name] for name in like])


def detections(depth, channels, width, values):
    """The detections of `image`, and the maps of the pyramid."""
    head = FasterRCNN(FPN(channels, width, aligned=False, rois_per_image=8), beta=1 / 9, max_boxes=2)
    graphdef, arrays = filled(head, depth, values)
    image = MAKE["image"]()
    batch = {**head.targets({"id": "", "labels": []}), "image": image, "mask": np.array(True),
             "size": np.array(image.shape[:2], np.int32)}

    @jax.jit
    def run(arrays, batch):
        return head.predict(merge(graphdef, *arrays), batch), merge(graphdef, *arrays).maps(batch["image"], train=False)

    out, maps = run(arrays, {name: value[None] for name, value in batch.items()})
    valid = np.asarray(out["valid"][0])
    return {name: np.asarray(out[name][0])[valid] for name in ("boxes", "scores", "labels")}, [x[0] for x in maps]


def compare(ours, expected):
    """Boxes to 1e-3 of a pixel, scores to 1e-3, in the same order."""
    assert len(expected["scores"]) >= 20 and np.ptp(expected["scores"]) > 0.02
    count = len(expected["scores"])
    assert len(ours["scores"]) >= count
    np.testing.assert_allclose(ours["scores"][:count], expected["scores"], atol=1e-3)
    np.testing.assert_array_equal(ours["labels"][:count], expected["labels"])
    np.testing.assert_allclose(ours["boxes"][:count], expected["boxes"], atol=1e-3)


def res5_features(depth, values, features, rois):
    """The C4 head's features of boxes, before its predictor."""
    graphdef, arrays = filled(FasterRCNN(C4()), depth, values)

    @jax.jit
    def run(arrays, features, rois):
        model = merge(graphdef, *arrays)
        inputs = []
        model.predictor = lambda x: inputs.append(x) or (x, x[..., None, :4])
        model.classify((features,), rois, False)
        return inputs[0]

    return np.asarray(run(arrays, features[None], rois[None])[0])


def test_the_small_detector_is_torchvisions():
    with np.load(MAKE["EXPECTED"]) as expected:
        values = MAKE["tensors"]({name: tuple(shape) for name, shape in json.loads(str(expected["shapes"])).items()})
        ours, maps = detections(18, MAKE["CHANNELS"], MAKE["WIDTH"], values)
        compare(ours, {name: expected[f"detections/{name}"] for name in ("boxes", "scores", "labels")})
        for i, value in enumerate(maps):
            ours = value if i > 2 else value.mean((0, 1))
            np.testing.assert_allclose(ours, expected[f"map{i}"], atol=1e-4, rtol=1e-4, err_msg=f"P{i + 2}")
        features = res5_features(18, values, *MAKE["c4_inputs"](256))
        np.testing.assert_allclose(features[:, ::8], expected["c4"], atol=1e-4)


def test_whole_forward_of_resnet50_is_torchvisions():
    pytest.importorskip("torchvision")
    model = MAKE["detector"](50, 256, 1024)
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = MAKE["reference_detections"](model)
    ours, _ = detections(50, 256, 1024, values)
    assert len(ours["scores"]) == len(expected["scores"])
    compare(ours, expected)
    features, rois = MAKE["c4_inputs"](1024)
    theirs = MAKE["reference_c4"](model, features, rois)
    ours = res5_features(50, values, features, rois)
    print(f"res5: {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.2f}")
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_arithmetic_of_many_boxes_is_torchvisions():
    pytest.importorskip("torchvision")
    ours = runpy.run_path(str(Path(__file__).parent / "test_detection_ops.py"))["ours"]
    expected, values = MAKE["reference"](150), ours(150)
    assert values.keys() == expected.keys()
    for name in values:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
