"""Boxes, maps and weights from seeds, and torchvision's results for them: `python tests/goldens/detection/make.py`.

Needs torch and torchvision. The tests use the seeded inputs alone and compare with expected.npz.
"""

import json
import runpy
from pathlib import Path

import numpy as np

EXPECTED = Path(__file__).parent / "expected.npz"
THRESHOLDS = (0.3, 0.5, 0.7)
STRIDES = (4, 8, 16, 32)
POOL = 7
CLASSES = 3
CHANNELS, WIDTH = 16, 32
"""Of the small detector's pyramid and fully connected layers."""
WEIGHTS = runpy.run_path(str(Path(__file__).parent.parent / "weights" / "make.py"))


def tensors(shapes):
    """Weights of torchvision's detector by name. Offsets are small, so that boxes stay in the image, and so are logits,
    so that probabilities differ."""
    values = WEIGHTS["tensors"](shapes)
    return {name: value * np.float32(0.1 if "bbox_pred" in name or "cls_score" in name else 1.0)
            for name, value in values.items()}


def detector_arrays(values):
    """torchvision's weights beside the backbone's, in our names and layout."""
    places = {"rpn.head.conv.0.0": "rpn.conv", "rpn.head.cls_logits": "rpn.objectness",
              "rpn.head.bbox_pred": "rpn.offsets", "roi_heads.box_head.fc6": "box_head.first",
              "roi_heads.box_head.fc7": "box_head.second", "roi_heads.box_predictor.cls_score": "predictor.logits",
              "roi_heads.box_predictor.bbox_pred": "predictor.offsets",
              **{f"backbone.fpn.{theirs}.{i}.0": f"fpn.{ours}.{i}" for i in range(4)
                 for theirs, ours in (("inner_blocks", "inner"), ("layer_blocks", "outer"))}}
    found = {}
    for theirs, ours in places.items():
        weight, bias = values[f"{theirs}.weight"], values[f"{theirs}.bias"]
        if theirs.endswith("box_predictor.bbox_pred"):
            weight, bias = weight[4:], bias[4:]  # theirs has offsets for the background
        if theirs.endswith("fc6"):  # theirs are by channel, row, column, ours by row, column, channel
            weight = weight.reshape(len(weight), -1, POOL, POOL).transpose(0, 2, 3, 1).reshape(len(weight), -1)
        found[f"{ours}.kernel"] = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        found[f"{ours}.bias"] = bias
    return found


def image(seed=0):
    """uint8 [128, 160, 3]; smooth, because features of noise are all alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3))
    return np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)


def detector(depth=18, channels=CHANNELS, width=WIDTH):
    """torchvision's Faster R-CNN with seeded weights, in inference mode."""
    import torch
    import torchvision
    from torchvision.models.detection import FasterRCNN, backbone_utils, faster_rcnn

    body = getattr(torchvision.models, f"resnet{depth}")()
    inputs = body.fc.in_features
    backbone = backbone_utils.BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)},
                                              [inputs // 8, inputs // 4, inputs // 2, inputs], channels)
    sizes = tuple((32 * 2**i,) for i in range(5))
    model = FasterRCNN(
        backbone, min_size=128, max_size=192, rpn_anchor_generator=faster_rcnn.AnchorGenerator(
            sizes, ((0.5, 1.0, 2.0),) * 5),
        box_head=faster_rcnn.TwoMLPHead(channels * POOL**2, width),
        box_predictor=faster_rcnn.FastRCNNPredictor(width, CLASSES + 1))
    values = tensors({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    return model.eval()


def reference_detections(model):
    """Boxes, scores and labels (from 0) of `image`."""
    import torch

    with torch.no_grad():
        found = model([torch.from_numpy(image()).permute(2, 0, 1).float() / 255])[0]
    return {"boxes": found["boxes"].numpy(), "scores": found["scores"].numpy(),
            "labels": found["labels"].numpy().astype(np.int32) - 1}


def reference_maps(model):
    """The pyramid's maps of `image`, P2 to P6: float32 [h, w, channels]."""
    import torch

    with torch.no_grad():
        images, _ = model.transform([torch.from_numpy(image()).permute(2, 0, 1).float() / 255])
        return [x[0].permute(1, 2, 0).numpy() for x in model.backbone(images.tensors).values()]


def reference_c4(model, features, rois):
    """Mean features of boxes after RoIAlign and the last stage: ``features`` [h, w, c] of stride 16."""
    import torch
    from torchvision.ops import roi_align

    with torch.no_grad():
        x = roi_align(torch.from_numpy(features).permute(2, 0, 1)[None], [torch.from_numpy(rois)], 14, 1 / 16, 2, True)
        return model.backbone.body.layer4(x).mean((2, 3)).numpy()


def c4_inputs(channels, count=8):
    rng = np.random.default_rng(11)
    return rng.standard_normal((8, 10, channels)).astype(np.float32), boxes(12, count, max_side=100.0)


def boxes(seed, count, side=128.0, max_side=80.0):
    """float32 [count, 4], (x1, y1, x2, y2); some reach out of the image of ``side``."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-0.1 * side, side, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1.0, max_side, (count, 2))], 1).astype(np.float32)


def clusters(seed, count):
    """Boxes around few objects, by falling score: long chains of overlaps."""
    rng = np.random.default_rng(seed)
    centers = boxes(seed + 1, 12)[rng.integers(0, 12, count)]
    return (centers + rng.normal(0, 5, (count, 4))).astype(np.float32)[np.argsort(rng.random(count))], \
        np.sort(rng.permutation(count).astype(np.float32))[::-1].copy()


def offsets(seed, count):
    """float32 [count, 4]; the first two grow beyond the limit of either side."""
    values = np.random.default_rng(seed).normal(0, 2.0, (count, 4)).astype(np.float32)
    values[[0, 1], [2, 3]] = 50
    return values


def maps(seed=5, channels=3, side=128):
    """One map per stride, float32 [side / stride, side / stride, channels]."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((side // s, side // s, channels)).astype(np.float32) for s in STRIDES]


def loss_inputs(seed, count, classes):
    """Predictions for boxes, their classes, and which of them were sampled for the loss."""
    rng = np.random.default_rng(seed)
    return {"logits": rng.normal(0, 1, (count, classes + 1)).astype(np.float32),
            "deltas": rng.normal(0, 0.5, (count, classes, 4)).astype(np.float32),
            "labels": rng.integers(0, classes + 1, count).astype(np.int32), "sampled": rng.random(count) < 0.6}


def reference(count=16):
    """torchvision's results for ``count`` of each."""
    import torch
    from torch import from_numpy as t
    from torchvision import ops
    from torchvision.models.detection import _utils, roi_heads, rpn
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    found = {"iou": ops.box_iou(t(boxes(1, count)), t(boxes(2, count)))}
    coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    found["encode"] = coder.encode_single(t(boxes(1, count)), t(boxes(2, count)))
    found["decode"] = coder.decode_single(t(offsets(3, count)), t(boxes(2, count)))
    generator = AnchorGenerator(((32, 64), (40, 48)), ((0.5, 1.0, 2.0),) * 2)
    cells = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    found["anchors"] = generator(ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), cells)[0]
    for threshold in THRESHOLDS:
        kept = torch.zeros(8 * count, dtype=torch.bool)
        around, score = clusters(4, 8 * count)
        kept[ops.nms(t(around), t(score), threshold)] = True
        found[f"nms{threshold}"] = kept
    pyramid = {str(i): t(m).permute(2, 0, 1)[None] for i, m in enumerate(maps())}
    pooler = ops.MultiScaleRoIAlign([*pyramid], POOL, 2)
    rois = t(boxes(6, count, max_side=160.0))
    found["pyramid"] = pooler(pyramid, [rois], [(128, 128)]).permute(0, 2, 3, 1)
    for aligned in (False, True):
        found[f"roi_align{aligned}"] = ops.roi_align(pyramid["1"], [rois], POOL, 1 / 8, 2, aligned).permute(0, 2, 3, 1)
    classes = 3
    given = {name: t(value) for name, value in loss_inputs(7, count, classes).items()}
    rois, objects = t(boxes(8, count)), t(boxes(9, count))
    background = torch.zeros(count, 1, 4)  # torchvision has offsets for it too
    sampled = given["sampled"]
    found["box_loss"] = torch.stack(roi_heads.fastrcnn_loss(
        given["logits"][sampled], torch.cat([background, given["deltas"]], 1).flatten(1)[sampled],
        [given["labels"].long()[sampled]], [coder.encode_single(objects, rois)[sampled]]))
    network = rpn.RegionProposalNetwork(generator, None, 0.7, 0.3, count, 0.5, {}, {}, 0.7)
    network.fg_bg_sampler = lambda labels: ([(labels[0] == 1) & sampled], [(labels[0] == 0) & sampled])
    found["rpn_loss"] = torch.stack(network.compute_loss(
        given["logits"][:, :1], given["deltas"][:, 0], [(given["labels"] > 1).float()],
        [_utils.BoxCoder((1.0,) * 4).encode_single(objects, rois)]))
    return {name: value.numpy() for name, value in found.items()}


def main():
    found = reference()
    model = detector()
    found["shapes"] = np.array(json.dumps({name: list(value.shape) for name, value in model.state_dict().items()}))
    found |= {f"detections/{name}": value[:24] for name, value in reference_detections(model).items()}
    found |= {f"map{i}": value if i > 2 else value.mean((0, 1)) for i, value in enumerate(reference_maps(model))}
    found["c4"] = reference_c4(model, *c4_inputs(256))[:, ::8]
    np.savez_compressed(EXPECTED, **{k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in found.items()})
    print({name: (value.shape, value.dtype) for name, value in found.items()}, EXPECTED.stat().st_size)


if __name__ == "__main__":
    main()
