"""Training steps of small networks on CPUs: ours and eager torch's, of the same network on the same images.

Each function returns a step for `interleaved`. Float32, random images, multi-label loss, AdamW. Ours is set up as
``bvl train`` does it; torch's has channels last, its quickest layout here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from interleaved import Step


@dataclasses.dataclass(frozen=True)
class Network:
    """A ResNet and its batch; ``group`` as in `BatchNorm`, which torch does not have: it normalises the whole batch."""

    depth: int
    width: float
    stem: str
    side: int
    batch: int
    group: int | None
    steps: int
    """Steps that are timed together."""
    classes: int = 200


NETWORKS = {
    "quickstart": Network(10, 0.5, "imagenet", 48, 64, 32, 8),
    "resnet18": Network(18, 1.0, "small", 32, 128, None, 1),
    "resnet50": Network(50, 1.0, "imagenet", 64, 32, 32, 1),
}


def data(network: Network) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (network.batch, network.side, network.side, 3), dtype=np.uint8)
    return images, rng.integers(0, network.classes, network.batch).astype(np.int32)


def repeated(step: Step, times: int) -> Step:
    return lambda: [step() for _ in range(times)][-1]


def jax_step(network: Network) -> Step:
    import jax

    from big_vision_lite.backbones.norm import BatchNorm
    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.commands.setup import set_up_jax
    from big_vision_lite.data.pipeline import Input
    from big_vision_lite.data.source import SavedDatasetInfo
    from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
    from big_vision_lite.data.transforms.image import Resize
    from big_vision_lite.experiment import Experiment
    from big_vision_lite.heads.classification import Classification
    from big_vision_lite.training.optimizers import AdamW
    from big_vision_lite.training.trainer import Trainer

    head = Classification("sigmoid")
    inputs = Input(EmojiScenes("train", network.batch, size=network.side), Resize(network.side), network.batch)
    experiment = Experiment(inputs, {}, ResNet(network.depth, network.width, BatchNorm(network.group), network.stem),
                            head, AdamW(1e-3, weight_decay=0.02), 1000)
    set_up_jax(experiment)
    trainer = Trainer(experiment, SavedDatasetInfo(tuple(map(str, range(network.classes))), True, "", 1, ""))
    images, labels = data(network)
    padded = np.full((network.batch, head.max_labels), -1, np.int32)
    padded[:, 0] = labels
    batch = trainer.to_devices({"image": images, "labels": padded, "mask": np.ones(network.batch, bool)})
    state = jax.block_until_ready(trainer.init())

    def step() -> float:
        nonlocal state
        state, metrics = trainer.train_step(state, batch)
        return float(metrics["loss"])

    return repeated(step, network.steps)


def torch_step(network: Network) -> Step:
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, relu: bool = True) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
        return [*layers, nn.ReLU(inplace=True)] if relu else layers

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            outputs = width * expansion
            layers = ([*conv(inputs, width, 1), *conv(width, width, 3, stride), *conv(width, outputs, 1, relu=False)]
                      if expansion > 1 else [*conv(inputs, width, 3, stride), *conv(width, width, 3, relu=False)])
            self.residual = nn.Sequential(*layers)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride, relu=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.residual(x) + self.shortcut(x))

    expansion = 4 if network.depth >= 50 else 1
    widths = [round(64 * network.width * 2**i) for i in range(4)]
    layers = conv(3, widths[0], *{"imagenet": (7, 2), "small": (3, 1)}[network.stem])
    if network.stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = widths[0]
    for stage, count in enumerate({10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[network.depth]):
        for block in range(count):
            layers.append(Block(channels, widths[stage], 2 if stage and not block else 1))
            channels = widths[stage] * expansion
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, network.classes))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02, foreach=True)
    images, labels = data(network)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = nn.functional.one_hot(torch.from_numpy(labels).long(), network.classes).float()

    def step() -> float:
        loss = nn.functional.binary_cross_entropy_with_logits(model((x.float() - 127.5) / 127.5), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return repeated(step, network.steps)
