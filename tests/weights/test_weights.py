"""Weights in and out: PyTorch's outputs without PyTorch, and what is refused."""

import io
import json
import runpy
import sys
import types
import zipfile
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones.backbone import PixelNormalization
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


def load(source, shapes):
    """A file's arrays for the network of these shapes."""
    return convert.to_ours(files.read_weights(str(source)).arrays, shapes, str(source))


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


@pytest.mark.parametrize(("backbone", "names", "stem", "head"), [
    (SMALL, naming.TORCHVISION, (4, 3, 7, 7), (10, 32)),
    (ResNetV2(50, 0.5), naming.TIMM_BIT, (32, 3, 7, 7), (10, 1024, 1, 1)),
    (ResNetV2(50, 0.5), naming.BIT, (7, 7, 3, 32), (1, 1, 1024, 10))], ids=lambda value: getattr(value, "title", ""))
def test_every_layout_goes_there_and_back(backbone, names, stem, head):
    rng = np.random.default_rng(0)
    ours = {name: rng.random(leaf.shape, np.float32) for name, leaf in like(backbone).items()}
    theirs = convert.to_theirs(names, ours)
    shape_of = {our_name: theirs[their_name].shape for their_name, our_name, _ in names.rows(names.depth_of(theirs))}
    assert (shape_of["backbone.stem.kernel"], shape_of["head.kernel"]) == (stem, head)
    back = convert.to_ours(theirs, like(backbone))
    assert back.keys() == ours.keys() and all(np.array_equal(back[name], ours[name]) for name in ours)
    if len(head) == 4:  # a classifier of one-by-one convolutions, which some files hold as a matrix
        their_name = next(their_name for their_name, our_name, _ in names.rows(50) if our_name == "head.kernel")
        theirs[their_name] = theirs[their_name].squeeze()
        assert np.array_equal(convert.to_ours(theirs, like(backbone))["head.kernel"], ours["head.kernel"])


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
    ours = {name: rng.random(leaf.shape, np.float32) for name, leaf in like(SMALL).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **ours)
    else:
        files.write_safetensors(path, ours)
    found = load(path, like(SMALL))
    assert found.keys() == ours.keys()
    assert all(np.array_equal(found[name], ours[name]) for name in ours)
    other = load(path, like(SMALL, classes=7))
    assert other["head.kernel"].shape[1] == 10  # as the file has it
    headless = {name: leaf for name, leaf in like(SMALL).items() if not name.startswith("head.")}
    assert load(path, headless).keys() == headless.keys()


def test_sixteen_bits_are_widened(tmp_path):
    import ml_dtypes

    values = {"a": np.float16([1.5, -2]), "b": np.asarray([1.5, -2], ml_dtypes.bfloat16), "n": np.int64([3])}
    files.write_safetensors(tmp_path / "x.safetensors", values)
    found = files.read_weights(str(tmp_path / "x.safetensors")).arrays
    assert found["a"].dtype == found["b"].dtype == np.float32 and found["n"].dtype == np.int64
    np.testing.assert_array_equal(found["b"], [1.5, -2])


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name])}


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
    (SMALL, replaced("layer2.0.conv1.weight", lambda x: x[:, :1]), "'layer2.0.conv1.weight' .*; it is an unsupported"),
    (SMALL, replaced("layer2.0.conv1.weight", lambda x: x[:1]), "'layer2.0.conv1.weight' .*; it is an unsupported"),
    (SMALL, plus("layer1.0.se.fc1.weight", 2), "has 'layer1.0.se.fc1.weight', which .*variant"),
    (SMALL, without("layer2.0.bn2.running_var"), "lacks 'layer2.0.bn2.running_var'"),
    (SMALL, plus("layer1.5.conv1.weight", 2), "has an unknown number of blocks for a BatchNorm ResNet"),
    (SMALL, without("fc.bias"), "lacks 'fc.bias'"),
    (SMALL, replaced("fc.weight", np.transpose), r"'fc.weight' has shape \(10, 32\) .* needs \(32, 32\); its "
                                                 "classifier is for 10 features, the run's for 32"),
    (SMALL, replaced("fc.bias", lambda bias: bias[1:]), "has weights for 10 classes and biases for 9"),
    (SMALL, replaced("bn1.running_var", lambda variance: variance - 9), "'bn1.running_var' has variances below 0"),
    (SMALL, replaced("conv1.weight", lambda x: x.astype(np.int8)), "'conv1.weight' holds values of type int8"),
    (SMALL, lambda tensors: {"features.0.weight": np.ones(3)}, "belong to no known network: 'features.0.weight';"),
    (SMALL, lambda tensors: {letter: np.ones(3) for letter in "abcd"}, r"'a', 'b', 'c', ... \(4 in all\);"),
    (SMALL, plus("bn1.num_batches_tracked"), None),
])
def test_another_network_is_named(tmp_path, backbone, change, message):
    files.write_safetensors(tmp_path / "w.safetensors", change(seeded(SMALL, naming.TORCHVISION)))
    if message is None:
        assert load(tmp_path / "w.safetensors", like(backbone)).keys() == like(backbone).keys()
        return
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "w.safetensors", like(backbone))
    assert "\n" not in str(caught.value) and "w.safetensors" in str(caught.value)


def test_our_own_file_of_another_network_is_named(tmp_path):
    ours = {name: np.zeros(leaf.shape, np.float32) for name, leaf in like(SMALL).items()}
    files.write_safetensors(tmp_path / "w.safetensors", ours)
    for backbone, message in ((ResNet(18, 1 / 16), "depth 10, .* depth 18"), (ResNet(10, 1 / 8), r"width is 0.0625"),
                              (ResNetV2(50), "is a ResNetV2 of depth 50")):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "w.safetensors", like(backbone))
    with pytest.raises(UserError, match="is a ResNetV2, the run's network is a BatchNorm ResNet"):
        convert.to_theirs(naming.TIMM_BIT, ours)
    with pytest.raises(UserError, match=r"has no place for 'backbone.extra'"):
        convert.to_theirs(naming.TORCHVISION, {**ours, "backbone.extra": np.zeros(1)})


@pytest.mark.parametrize("bias", [np.float32(1), np.ones((10, 1), np.float32), None])
def test_a_classifier_needs_one_bias_per_class(bias):
    ours = {name: np.zeros(leaf.shape, np.float32) for name, leaf in like(SMALL).items()}
    ours |= {"head.bias": bias} if bias is not None else {}
    if bias is None:
        del ours["head.bias"]
    with pytest.raises(UserError, match=r"classifier has weights for 10 classes|'head.bias' has shape"):
        convert.to_ours(ours, like(SMALL))


def archive_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def safetensors_of(kind, shape, size, **metadata):
    """A file of one array with any header."""
    header = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}, "__metadata__": metadata})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(size)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("w.npz", archive_of("notes.txt", b"hello"), "'notes.txt' in it is not an array"),
    ("w.bin", b"", r"expected \.safetensors, \.npz"),
    ("w.npz", None, "no weights file"),
    ("w.npz", b"no zip", r"cannot read weights '.*w.npz' as .npz: File is not a zip file; is it complete\?"),
    ("w.npz", {"a": np.asarray([{}])}, "hold Python objects"),
    ("w.npz", {}, "hold no arrays"),
    ("w.npz", {"fine": np.ones(2), "layer1.w": np.float32([1, np.nan, np.inf])}, "'layer1.w' has 2 of 3 values"),
    ("w.npz", {"a": np.array(["resnet50"])}, r"'a' holds values of type str256; expected numbers"),
    ("w.npz", {"a": np.ones(2, complex)}, "'a' holds values of type complex128; expected numbers"),
    ("w.npz", {"a": np.array([1e300])}, "'a' has 1 of 1 values that are NaN or infinite"),
    ("w.safetensors", b"\xff" * 20, r"cannot read weights '.*w.safetensors' as .safetensors: .*; is it complete\?"),
    ("w.safetensors", safetensors_of("F8_E4M3", [2], 2), "'a' holds values of type F8_E4M3; expected one of F64, "),
    ("w.safetensors", safetensors_of("F32", [1 << 40], 4), "cannot read weights"),
    ("w.safetensors", safetensors_of("F32", [1], 4, pixels="none"), "cannot read metadata 'pixels' of .*expected"),
    ("w.safetensors", safetensors_of("F32", [1], 4, pixels='[["a", 0, 0], [1, 1, 1]]'), "Expected `float`, got `str`"),
    ("w.safetensors", safetensors_of("F32", [1], 4, pixels="[[0, 0, 0], [1, 1, 0]]"),
     r"metadata 'pixels' of '.*w.safetensors': .*> 0.0 - at `\$\[1\]\[2\]`"),
    ("w.safetensors", safetensors_of("F32", [1], 4, pixels=5), "cannot read weights"),
])
def test_files_that_are_refused(tmp_path, name, content, message):
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_UNPACKED", 2**20)
    for size, compress in ((2**21, np.savez), (2**17, np.savez_compressed)):
        compress(tmp_path / "w.npz", a=np.zeros(size, np.uint8))
        assert files.read_weights(str(tmp_path / "w.npz")).arrays["a"].size == size
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(2**21, np.uint8))
    with pytest.raises(UserError, match=r"unpacks to 2,097,.* bytes, over 100 times its own size"):
        files.read_weights(str(tmp_path / "w.npz"))


@pytest.mark.parametrize(("names", "architecture", "is_plain"), [
    *((naming.TORCHVISION, name, True) for name in ("resnet50", "resnet50.a1_in1k", "ResNet-18", "tv_resnet34",
                                                    "wide_resnet50_2", "gluon_resnet50_v1b")),
    *((naming.TORCHVISION, name, False) for name in ("resnetaa50", "resnetblur50.bt_in1k", "resnet50d", "resnet50_gn")),
    (naming.TIMM_BIT, "resnetv2_50x1_bit.goog_in21k", True), (naming.TIMM_BIT, "resnetv2_50d_gn", False)])
def test_an_architecture_with_the_same_names_is_told_apart(tmp_path, names, architecture, is_plain):
    """timm's resnetaa50 and resnetblur50 have the arrays of a ResNet-50, and pool differently."""
    inside, beside = tmp_path / "inside" / "w.safetensors", tmp_path / "beside" / "w.safetensors"
    tensors = {next(theirs for theirs, _, _ in names.rows(50) if names.block.match(theirs)): np.zeros(1, np.float32)}
    for path in (inside, beside):
        path.parent.mkdir()
        files.write_safetensors(path, tensors, {"architecture": architecture} if path == inside else None)
    (beside.parent / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 10}))
    for path in (inside, beside):
        if is_plain:
            assert files.read_weights(str(path)).architecture == architecture
        else:
            with pytest.raises(UserError, match=f"are of architecture '{architecture}', which may compute something"):
                files.read_weights(str(path))


def test_the_pixel_normalization_is_the_files_or_that_of_timms_config_or_of_its_naming(tmp_path):
    path, tensors = tmp_path / "w.safetensors", seeded(SMALL, naming.TORCHVISION)
    files.write_safetensors(path, tensors)
    assert files.read_weights(str(path)).pixels == naming.IMAGENET
    config = {"architecture": "resnet10", "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.5, 0.5, 0.25]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert files.read_weights(str(path)).pixels == PixelNormalization(naming.IMAGENET.mean, (127.5, 127.5, 63.75))
    files.write_safetensors(path, tensors, {"pixels": "[[1, 2, 3], [4, 5, 6]]"})
    assert files.read_weights(str(path)).pixels == PixelNormalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    (tmp_path / "config.json").write_text("of another project")
    files.write_safetensors(path, {"a": np.zeros(1)})
    assert files.read_weights(str(path)).pixels is None


class Tensor:
    """What is read here of PyTorch's tensors."""

    def __init__(self, *values):
        self.values = np.array(values, np.float32)
        self.nbytes = self.values.nbytes

    def untyped_storage(self):
        return types.SimpleNamespace(nbytes=lambda: self.nbytes)

    def is_floating_point(self):
        return True

    def numpy(self):
        return self.values

    detach = float = lambda self: self


@pytest.mark.parametrize(("contents", "ema", "expected", "part"), [
    ({"x": Tensor(1)}, False, [1], ""),
    ({"state_dict": {"module.x": Tensor(1)}, "state_dict_ema": {"x": Tensor(2)}, "epoch": 3}, False, [1],
     "state_dict, without its moving average state_dict_ema, which --weights ema takes"),
    ({"state_dict": {"x": Tensor(1)}, "state_dict_ema": {"x": Tensor(2)}}, True, [2], "state_dict_ema"),
    ({"model": {"_orig_mod.x": Tensor(1)}, "model_ema": {"module.module.x": Tensor(2)}}, True, [2], "model_ema"),
    ({"model": {"x": Tensor(1)}}, True, None, "no moving average, which would be called state_dict_ema or model_ema"),
    ({"state_dict_ema": {"x": Tensor(2)}}, False, None, "expected a dict .*; --weights ema takes state_dict_ema"),
    ({"x": Tensor(1), "name": "resnet50"}, False, None, "expected a dict from names to tensors"),
    ([Tensor(1)], False, None, "expected a dict from names to tensors"),
    ({"arch": "resnetaa50", "state_dict": {"layer1.0.conv1.weight": Tensor(1)}}, False, None,
     "are of architecture 'resnetaa50'"),
])
def test_the_network_in_a_file_of_pytorch_is_found(tmp_path, monkeypatch, contents, ema, expected, part):
    """With a stand-in for PyTorch; the parity tests have its own files."""
    def load(path, map_location, weights_only):
        assert weights_only
        return contents

    torch = types.SimpleNamespace(load=load, Tensor=Tensor)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "w.pth").touch()
    if expected is None:
        with pytest.raises(UserError, match=part):
            files.read_weights(str(tmp_path / "w.pth"), ema)
        return
    weights = files.read_weights(str(tmp_path / "w.pth"), ema)
    assert weights.arrays.keys() == {"x"} and weights.arrays["x"].tolist() == expected and weights.part == part


def test_other_files_hold_no_moving_average(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.ones(1))
    with pytest.raises(UserError, match=r"only \.pth files hold a moving average"):
        files.read_weights(str(tmp_path / "w.npz"), ema=True)
