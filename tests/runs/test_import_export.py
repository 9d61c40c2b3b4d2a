"""Weights into a run and out again by the commands."""

import numpy as np
import pytest

from big_vision_lite.cli import main
from big_vision_lite.system.ownership import own
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.weights.files import read_weights, write_safetensors

BLOCKS = (2, 2, 2, 2)


def torchvision_resnet18(classes=3, seed=0):
    """Random arrays under the names of torchvision's ResNet-18, of a sixteenth of its width."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1.weight": (4, 3, 7, 7), "fc.weight": (classes, 32), "fc.bias": (classes,)}

    def norm(name, channels):
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 4)
    inputs = 4
    for stage, blocks in enumerate(BLOCKS):
        channels = 4 << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (channels, inputs, 3, 3)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{name}.bn1", channels)
            norm(f"{name}.bn2", channels)
            if inputs != channels:
                shapes[f"{name}.downsample.0.weight"] = (channels, inputs, 1, 1)
                norm(f"{name}.downsample.1", channels)
            inputs = channels
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def test_imported_and_exported_weights_are_the_same_to_the_bit(tmp_path, capsys):
    tensors = torchvision_resnet18()
    write_safetensors(tmp_path / "in.safetensors", tensors)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    run = tmp_path / "run"
    assert main(["weights", "import", str(tmp_path / "in.safetensors"), "--out", str(run), "--classes",
                 str(tmp_path / "names.txt")]) == 0
    assert "ResNet-18 with 3 classes" in capsys.readouterr().out
    for form in ("torchvision", "timm", "safetensors"):
        assert main(["weights", "export", str(run), "--to", form, "--out", str(tmp_path / f"{form}.safetensors")]) == 0
        assert (f"{form} itself has no such ResNet" in capsys.readouterr().out) == (form != "safetensors")  # 1/16 wide
    for form in ("torchvision", "timm"):
        found = read_weights(str(tmp_path / f"{form}.safetensors")).arrays
        assert tensors.keys() <= found.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.endswith("probe it, or evaluate a run that starts from it\n")
    again = tmp_path / "again"
    assert main(["weights", "import", str(tmp_path / "safetensors.safetensors"), "--out", str(again)]) == 0
    arrays = [Checkpoints(folder / "checkpoints").arrays() for folder in (run, again)]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        if name.startswith(("params", "batch_stats")):
            np.testing.assert_array_equal(array, arrays[1][name], err_msg=name)


def test_weights_without_a_classifier_are_imported(tmp_path, capsys):
    tensors = {name: array for name, array in torchvision_resnet18().items() if not name.startswith("fc.")}
    write_safetensors(tmp_path / "in.safetensors", tensors)
    command = ["weights", "import", str(tmp_path / "in.safetensors"), "--out", str(tmp_path / "run")]
    with own(tmp_path / "run"):  # a run that trains there
        assert main(command) == 2
        assert "is in use by process" in capsys.readouterr().err and len([*(tmp_path / "run").iterdir()]) == 1
    assert main(command) == 0
    assert f"ResNet-18 with no classifier, {len(tensors)} arrays" in capsys.readouterr().out
    assert main(["weights", "export", str(tmp_path / "run"), "--to", "torchvision", "--out",
                 str(tmp_path / "out.safetensors")]) == 0
    found = read_weights(str(tmp_path / "out.safetensors")).arrays
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.update(extra=np.zeros(3, np.float32)), "extra"),
    (lambda t: t.pop("layer2.0.bn1.bias"), "layer2.0.bn1.bias"),
    (lambda t: t.update({"layer2.0.conv1.weight": np.zeros((9, 4, 3, 3), np.float32)}), "layer2.0.conv1"),
    (lambda t: t.update({"fc.weight": t["fc.weight"].T}), "its classifier is for 3 features, the run's for 32"),
    (lambda t: t.update({"bn1.running_var": t["bn1.running_var"] - 1}), "'bn1.running_var' has variances below 0"),
    (lambda t: t.update({"fc.bias": np.float32(1)}), "weights for 3 classes and biases for 1; it is damaged"),
    (lambda t: t.update({"conv1.weight": t["conv1.weight"][:0]}), "no first convolution of 7 x 7"),
    (lambda t: t.update({"bn1.bias": np.full(4, np.nan, np.float32)}), "'bn1.bias' has 4 of 4 values"),
    (lambda t: [t.pop(name) for name in list(t) if name.startswith("layer4.1")], "no ResNet of a known depth"),
])
def test_weights_that_are_refused(tmp_path, capsys, change, message):
    tensors = torchvision_resnet18()
    change(tensors)
    write_safetensors(tmp_path / "in.safetensors", tensors)
    assert main(["weights", "import", str(tmp_path / "in.safetensors"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("lines", "message"), [
    ("ant\nbee\n", "2 names of classes, 2 of them different; "), ("ant\nbee\nant\n", "3 names of classes, 2 of them"),
    (b"\xff\n", "cannot read"), (None, "cannot read")])
def test_names_of_classes_that_are_refused(tmp_path, capsys, lines, message):
    write_safetensors(tmp_path / "in.safetensors", torchvision_resnet18())
    names = tmp_path / "names.txt"
    if lines is not None:
        names.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    assert main(["weights", "import", str(tmp_path / "in.safetensors"), "--out", str(tmp_path / "run"), "--classes",
                 str(names)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_forms_are_named(capsys):
    assert main(["weights", "exprot"]) == 2 and "did you mean 'weights export'" in capsys.readouterr().err
