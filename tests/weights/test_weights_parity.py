"""Copied weights give PyTorch's outputs: torchvision, timm and BiT. Skipped where they are not installed."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from big_vision_lite.backbones.resnet import ResNet  # noqa: E402
from big_vision_lite.backbones.resnet_v2 import ResNetV2  # noqa: E402
from big_vision_lite.errors import UserError  # noqa: E402
from big_vision_lite.heads.classification import Classifier  # noqa: E402
from big_vision_lite.training.step import merge, split  # noqa: E402
from big_vision_lite.training.trees import flatten  # noqa: E402
from big_vision_lite.weights import convert, files, naming  # noqa: E402

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "weights" / "make.py"))
CLASSES = MAKE["CLASSES"]


def loaded(source, backbone):
    """A classifier's arrays from a file, and its logits as a function of images."""
    graphdef, *arrays = split(nnx.eval_shape(
        lambda: Classifier(backbone.build(nnx.Rngs(0)), CLASSES, 0.0, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(arrays).items()}
    found = convert.to_ours(files.read_weights(str(source)).arrays, like)
    filled = jax.tree.unflatten(jax.tree.structure(arrays), [found[name] for name in like])
    return found, lambda images: np.asarray(jax.jit(lambda p, s, x: merge(graphdef, p, s)(x, train=False))(
        *filled, images))


def compare(model, logits, size, normalisation):
    images = MAKE["images"](2, size)
    with torch.no_grad():
        theirs = model(MAKE["torch_input"](images, *MAKE[normalisation])).numpy()
    difference = float(np.abs(logits(images) - theirs).max())
    print(f"{difference:.1e} of logits up to {np.abs(theirs).max():.2f}")
    assert np.abs(theirs).max() > 0.1  # or the comparison would say little
    assert difference < 1e-4


def equal(found, model):
    """All of the model's arrays but ``num_batches_tracked``, bit for bit."""
    theirs = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim}
    assert found.keys() == theirs.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(("maker", "depth", "size"), [
    ("torchvision", 18, 224), ("torchvision", 50, 97), ("timm", 50, 64),
    *(pytest.param("torchvision", depth, 64, marks=pytest.mark.slow) for depth in (34, 101, 152))])
def test_resnets(tmp_path, maker, depth, size):
    if maker == "timm":
        model = timm.create_model(f"resnet{depth}.a1_in1k", pretrained=False, num_classes=CLASSES)
    else:
        model = getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)
    MAKE["fill"](model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found, logits = loaded(tmp_path / "weights.pth", ResNet(depth, pixels=naming.IMAGENET))
    compare(model, logits, size, "IMAGENET")

    back = convert.to_theirs(naming.TORCHVISION, found)
    equal(back, model)
    files.write_safetensors(tmp_path / "back.safetensors", back)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "back.safetensors"), strict=True)


@pytest.mark.parametrize(("name", "depth", "width"), [
    ("resnetv2_50x1_bit", 50, 1), pytest.param("resnetv2_50x3_bit", 50, 3, marks=pytest.mark.slow)])
def test_bit(tmp_path, name, depth, width):
    model = MAKE["fill"](timm.create_model(name, pretrained=False, num_classes=CLASSES))
    files.write_safetensors(tmp_path / "timm.safetensors",
                              {name: value.numpy() for name, value in model.state_dict().items()})
    found, logits = loaded(tmp_path / "timm.safetensors", ResNetV2(depth, width))
    compare(model, logits, 97, "HALF")
    equal(convert.to_theirs(naming.TIMM_BIT, found), model)

    np.savez(tmp_path / "bit.npz", **convert.to_theirs(naming.BIT, found))  # whose names timm reads too
    other = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    other.load_pretrained(str(tmp_path / "bit.npz"))
    equal(convert.to_theirs(naming.TIMM_BIT, found), other)
    again = loaded(tmp_path / "bit.npz", ResNetV2(depth, width))[0]
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_a_pickled_object_in_a_pth_file_is_refused(tmp_path):
    class Surprise:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"conv1.weight": Surprise()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="Python objects"):
        files.read_weights(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "torn.pth").write_bytes(b"PK\3\4torn")
    with pytest.raises(UserError, match="is it complete"):
        files.read_weights(str(tmp_path / "torn.pth"))


def test_files_of_training_scripts(tmp_path):
    """Parameters, which require gradients; 16 and 64 bits; views; a moving average as torchvision and timm keep it."""
    layer = torch.nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(layer)
    average.update_parameters(layer)
    torch.save({"model": {"module.x": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
                          "y": torch.arange(6, dtype=torch.float64).reshape(2, 3).T, "z": torch.tensor([1])},
                "model_ema": average.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    weights = files.read_weights(str(tmp_path / "w.pth"))
    assert {name: (value.dtype.name, value.tolist()) for name, value in weights.arrays.items()} == {
        "x": ("float32", [1, 1]), "y": ("float32", [[0, 3], [1, 4], [2, 5]]), "z": ("int64", [1])}
    assert weights.part == "model, without its moving average model_ema, which --weights ema takes"
    weights = files.read_weights(str(tmp_path / "w.pth"), ema=True)
    assert weights.arrays.keys() == {"n_averaged", "weight", "bias"} and weights.part == "model_ema"
    np.testing.assert_array_equal(weights.arrays["weight"], layer.weight.detach())


@pytest.mark.filterwarnings("ignore:.*in beta state", "ignore:.*TypedStorage", "ignore:.*quantized")
@pytest.mark.parametrize("make", [
    lambda: torch.eye(3).to_sparse(), lambda: torch.eye(3).to_sparse_csr(), lambda: torch.zeros(2, device="meta"),
    lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), lambda: torch.zeros(1).expand(10**12),
    lambda: torch.ones(2, dtype=torch.complex64)], ids=("sparse", "csr", "meta", "quantised", "expanded", "complex"))
def test_tensors_without_plain_values_are_named(tmp_path, make):
    torch.save({"layer1.0.conv1.weight": make()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"'layer1.0.conv1.weight'.* expected") as caught:
        files.read_weights(str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50"])
def test_variants_with_the_names_of_a_resnet_are_refused(tmp_path, name):
    """As timm's training script saves them."""
    state_dict = timm.create_model(name, pretrained=False).state_dict()
    assert naming.TORCHVISION.depth_of(state_dict) == 50
    torch.save({"arch": name, "state_dict": state_dict}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"are of architecture '{name}'"):
        files.read_weights(str(tmp_path / "w.pth"))
