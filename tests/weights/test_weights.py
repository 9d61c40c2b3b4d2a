"""Weights in and out: PyTorch's outputs without PyTorch, and what is refused."""

import io
import runpy
import zipfile
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones.norm import GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.errors import UserError
from big_vision_lite.heads.classification import Classifier
from big_vision_lite.training.step import merge, split
from big_vision_lite.training.trees import flatten
from big_vision_lite.weights import convert, files, naming

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "weights" / "make.py"))
SMALL = ResNet(10, width=1 / 16)


@cache
def described(backbone, classes=10):
    """The structure of a classifier, and the shapes of its arrays by name and as a tree."""
    graphdef, *arrays = split(nnx.eval_shape(
        lambda: Classifier(backbone.build(nnx.Rngs(0)), classes, 0.0, nnx.Rngs(0))))
    return graphdef, {name.partition(".")[2]: leaf for name, leaf in flatten(arrays).items()}, arrays


def like(backbone, classes=10):
    return described(backbone, classes)[1]


def seeded(backbone, names, classes=10):
    """Weights from seeds, in the names and layout of another project."""
    shapes = convert.to_theirs(names, {name: np.zeros(leaf.shape, bool)
                                       for name, leaf in like(backbone, classes).items()})
    return MAKE["tensors"]({name: value.shape for name, value in shapes.items()})


@pytest.mark.parametrize(("name", "backbone", "names"), [
    ("resnet18", ResNet(18, pixels=naming.IMAGENET), naming.TORCHVISION),
    ("bit", ResNetV2(50), naming.TIMM_BIT)])
def test_features_and_logits_are_pytorchs(name, backbone, names):
    graphdef, shapes, arrays = described(backbone)
    tensors = seeded(backbone, names)
    found = convert.to_ours(tensors, shapes)
    filled = jax.tree.unflatten(jax.tree.structure(arrays), [found[key] for key in shapes])

    @jax.jit
    def compute(params, batch_stats, images):
        model = merge(graphdef, params, batch_stats)
        features = model.backbone(images, train=False)
        return features, model.head(features[-1].mean((1, 2)))

    images = jnp.asarray(MAKE["images"]())
    features, logits = compute(*filled, images)
    module = nnx.merge(graphdef, *arrays).backbone
    with np.load(MAKE["EXPECTED"]) as expected:
        np.testing.assert_allclose(logits, expected[f"{name}/logits"], atol=1e-4)
        for i, (feature, stride, channels) in enumerate(zip(features, module.strides, module.channels, strict=True)):
            assert feature.shape == (2, 64 // stride, 64 // stride, channels)
            np.testing.assert_allclose(feature.mean((1, 2)), expected[f"{name}/stage{i}"], atol=3e-4, rtol=1e-4)
    back = convert.to_theirs(names, found)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"width=0.125 makes 8 channels; expected a multiple of norm.groups=32"):
        ResNetV2(50, 0.125)


@pytest.mark.parametrize(("names", "depth"), [
    *((naming.TORCHVISION, depth) for depth in (18, 34)),
    *((names, depth) for names in naming.NAMINGS for depth in (50, 101, 152, 200))],
    ids=lambda value: getattr(value, "title", value))
def test_depths_are_recognised(names, depth):
    theirs, ours, _ = zip(*names.rows(depth), strict=True)
    assert naming.depth_of(ours) == depth
    assert naming.depth_of(theirs) == depth
    assert len(set(theirs)) == len(set(ours)) == len(ours)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_return_what_was_written_and_our_own_names_load(tmp_path, suffix):
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in like(SMALL).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **ours)
    else:
        files.write_safetensors(path, ours)
    found = convert.load(str(path), like(SMALL))
    assert found.keys() == ours.keys()
    assert all(np.array_equal(found[name], ours[name]) for name in ours)
    other = convert.load(str(path), like(SMALL, classes=7))
    assert other["head.kernel"].shape[1] == 10  # as the file has it
    headless = {name: leaf for name, leaf in like(SMALL).items() if not name.startswith("head.")}
    assert convert.load(str(path), headless).keys() == headless.keys()


def test_sixteen_bits_are_widened(tmp_path):
    import ml_dtypes

    values = {"a": np.float16([1.5, -2]), "b": np.asarray([1.5, -2], ml_dtypes.bfloat16), "n": np.int64([3])}
    files.write_safetensors(tmp_path / "x.safetensors", values, {"pixels": "0 to 255"})
    assert files.read_metadata(tmp_path / "x.safetensors") == {"pixels": "0 to 255"}
    found = files.read_file(tmp_path / "x.safetensors")
    assert found["a"].dtype == found["b"].dtype == np.float32 and found["n"].dtype == np.int64
    np.testing.assert_array_equal(found["b"], [1.5, -2])


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def plus(name, *shape):
    return lambda tensors: {**tensors, name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(("backbone", "change", "message"), [
    (ResNet(18, 1 / 16), dict, "is a BatchNorm ResNet of depth 10, the run's backbone is a .* ResNet of depth 18"),
    (ResNet(10, 1 / 2, norm=GroupNorm()), dict, "the run's backbone is a GroupNorm ResNet of depth 10"),
    (ResNetV2(50), dict, "the run's backbone is a ResNetV2 of depth 50"),
    (ResNet(10, 1 / 8), dict, r"'conv1.weight' has shape \(7, 7, 3, 4\) .* needs \(7, 7, 3, 8\); its width is "
                              "0.0625, the run's 0.125"),
    (ResNet(10, 1 / 16, stem="half"), dict, "its stem is 7x7, the run's 3x3"),
    (SMALL, plus("conv1.weight", 5, 7, 4, 3), r"'conv1.weight' has shape \(4, 3, 7, 5\)"),
    (SMALL, plus("layer1.0.se.fc1.weight", 2), "has 'layer1.0.se.fc1.weight', which .*variant"),
    (SMALL, without("layer2.0.bn2.running_var"), "lacks 'layer2.0.bn2.running_var'"),
    (SMALL, plus("layer1.5.conv1.weight", 2), "has an unknown number of blocks for a BatchNorm ResNet"),
    (SMALL, without("fc.bias"), "lacks 'fc.bias'"),
    (SMALL, lambda tensors: {"features.0.weight": np.ones(3)}, "belong to no known network: 'features.0.weight'"),
    (SMALL, plus("bn1.num_batches_tracked"), None),
])
def test_another_network_is_named(tmp_path, backbone, change, message):
    files.write_safetensors(tmp_path / "w.safetensors", change(seeded(SMALL, naming.TORCHVISION)))
    if message is None:
        assert convert.load(str(tmp_path / "w.safetensors"), like(backbone)).keys() == like(backbone).keys()
        return
    with pytest.raises(UserError, match=message) as caught:
        convert.load(str(tmp_path / "w.safetensors"), like(backbone))
    assert "\n" not in str(caught.value) and "w.safetensors" in str(caught.value)


def test_our_own_file_of_another_network_is_named(tmp_path):
    ours = {name: np.zeros(leaf.shape, np.float32) for name, leaf in like(SMALL).items()}
    files.write_safetensors(tmp_path / "w.safetensors", ours)
    for backbone, message in ((ResNet(18, 1 / 16), "depth 10, .* depth 18"), (ResNet(10, 1 / 8), r"width is 0.0625"),
                              (ResNetV2(50), "is a ResNetV2 of depth 50")):
        with pytest.raises(UserError, match=message):
            convert.load(str(tmp_path / "w.safetensors"), like(backbone))
    with pytest.raises(UserError, match="is a ResNetV2, the run's network is a BatchNorm ResNet"):
        convert.to_theirs(naming.TIMM_BIT, ours)
    with pytest.raises(UserError, match=r"has no place for 'backbone.extra'"):
        convert.to_theirs(naming.TORCHVISION, {**ours, "backbone.extra": np.zeros(1)})


def archive_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("w.npz", archive_of("notes.txt", b"hello"), "'notes.txt' in it is not an array"),
    ("w.bin", b"", r"expected \.safetensors, \.npz"),
    ("w.npz", None, "no weights file"),
    ("w.npz", b"no zip", "cannot be read as npz"),
    ("w.npz", {"a": np.asarray([{}])}, "hold Python objects"),
    ("w.npz", {}, "hold no arrays"),
    ("w.npz", {"fine": np.ones(2), "layer1.w": np.float32([1, np.nan, np.inf])}, "'layer1.w' has 2 of 3 values"),
    ("w.safetensors", b"\xff" * 20, "cannot be read as safetensors"),
])
def test_files_that_are_refused(tmp_path, name, content, message):
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_file(tmp_path / name)
    assert "\n" not in str(caught.value)
