"""Weights and images from seeds, and PyTorch's results for them: `python tests/goldens/weights/make.py`.

Needs torch, torchvision and timm. The tests use the seeded weights alone and compare with expected.npz.
"""

import zlib
from pathlib import Path

import numpy as np

CLASSES = 10
EXPECTED = Path(__file__).parent / "expected.npz"


def tensors(shapes):
    """One array per name, in PyTorch's layout; each depends only on its name and shape."""
    return {name: _tensor(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _tensor(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        values = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(".weight"):
        values = rng.uniform(0.25, 1.0, shape)  # small enough for 152 layers to stay near 1
    else:
        values = 0.1 * rng.standard_normal(shape)
    return values.astype(np.float32)


def images(count=2, size=64):
    """uint8 [count, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def torch_input(pixels, mean, std):
    """Images as PyTorch takes them; ``mean`` and ``std`` are of values from 0 to 1, as in its transforms."""
    import torch

    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - torch.tensor(mean)[:, None, None])
    return scaled / torch.tensor(std)[:, None, None]


def fill(model):
    """The model with the seeded weights, in inference mode."""
    import torch

    values = tensors({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    return model.eval()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


def main():
    import timm
    import torch
    import torchvision

    found = {}
    with torch.no_grad():
        resnet = fill(torchvision.models.resnet18(num_classes=CLASSES))
        x = torch_input(images(), *IMAGENET)
        found["resnet18/logits"] = resnet(x).numpy()
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for i in range(4):
            x = getattr(resnet, f"layer{i + 1}")(x)
            found[f"resnet18/stage{i}"] = x.mean((2, 3)).numpy()
        bit = fill(timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=CLASSES))
        x = torch_input(images(), *HALF)
        found["bit/logits"] = bit(x).numpy()
        x = bit.stem(x)
        for i in range(4):
            x = bit.stages[i](x)
            found[f"bit/stage{i}"] = (bit.norm(x) if i == 3 else x).mean((2, 3)).numpy()
    np.savez_compressed(EXPECTED, **found)
    print({name: (value.shape, float(np.abs(value).max())) for name, value in found.items()})


if __name__ == "__main__":
    main()
