"""Print docs/results/claims.md: what the runs in docs/results say of each claim of the paper.

    python tools/claims.py > docs/results/claims.md
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from big_vision_lite.scaling.laws.curves import read_rows
from big_vision_lite.scaling.paper.claims import FEWEST_SEEDS, Contrast, Finding, Runs, find

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LARGE, SMALL, LONG = 45_000, 8_000, 450_000
"""Photos to learn from, and photos seen with repeats, of the longest runs."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of Sun et al. (2017)."""

    text: str
    how: str
    """How it was tested."""
    files: tuple[str, ...] = ()
    """Folders of the results.csv that have the runs, below docs/results or docs/results/surface."""
    contrasts: tuple[Contrast, ...] = ()
    """None where it was not run."""


def photos(what: str, *runs: Runs, metric: str = "test/top1", stage: str = "pretraining") -> Contrast:
    return Contrast(what, metric, tuple(dataclasses.replace(one, where={"stage": stage, **one.where}) for one in runs))


def more(larger: dict, smaller: dict) -> tuple[Runs, Runs]:
    """The first minus the second."""
    return Runs(1, larger), Runs(-1, smaller)


def of(images: int, seen: int, noise: float = 0.0, depth: int = 10, **factors: str | float) -> dict[str, str | float]:
    return {"images": images, "images_seen": seen, "noise": noise, "depth": depth, **factors}


def gain(way: str, target: int) -> tuple[Runs, Runs]:
    """What 45,000 instead of 1,400 photos of pretraining give a transfer."""
    return more(*({"images": images, "target_images": target, "frozen": way} for images in (LARGE, 1_400)))


CLAIMS = (
    Claim("More data helps, and does not saturate", "photos: 45,000 against 8,000 and 19,000, equal photos seen",
          ("photos",),
          (photos("8,000 to 45,000 photos, 225,000 seen", *more(of(LARGE, 225_000), of(SMALL, 225_000))),
           photos("19,000 to 45,000 photos, 450,000 seen", *more(of(LARGE, LONG), of(19_000, LONG))))),
    Claim("Performance grows with the number of images at equal passes", "photos: 5 passes over 1,400 and 45,000",
          ("photos",), (photos("1,400 to 45,000 photos, 5 passes", *more(of(LARGE, 225_000), of(1_400, 7_000))),)),
    Claim("Longer training is better", "photos: 45,000, twice the photos seen", ("photos",),
          (photos("225,000 to 450,000 seen", *more(of(LARGE, LONG), of(LARGE, 225_000))),)),
    Claim("More data helps although labels are noisy", "photos with wrong labels, rates of right ones",
          ("photos", "noise"),
          tuple(photos(f"8,000 to 45,000 photos, {share:.0%} wrong, 225,000 seen",
                       *more(of(LARGE, 225_000, share), of(SMALL, 225_000, share))) for share in (0.2, 0.4))),
    Claim("20 % wrong labels are forgiven by more images",
          "45,000 photos with 20 % wrong labels against 8,000 with right ones",
          ("photos", "noise", "noise_long"),
          tuple(photos(f"{seen:,} seen", *more(of(LARGE, seen, 0.2, noise_kind="uniform"), of(SMALL, seen)))
                for seen in (225_000, LONG))),
    Claim("Deeper networks gain more from data", "ResNet-18 and 10", ("photos", "depth"),
          (photos("gain of ResNet-18 minus gain of ResNet-10, 225,000 seen",
                  *more(of(LARGE, 225_000, depth=18), of(SMALL, 225_000, depth=18)), Runs(-1, of(LARGE, 225_000)),
                  Runs(1, of(SMALL, 225_000))),)),
    Claim("Pretraining on more data helps other tasks", "CIFAR-10-JPEG, 500 steps of 64, rates not tuned", ("photos",),
          tuple(photos(f"fine-tuned on {target:,}, pretrained on 45,000 photos (450,000 seen), not 1,400 (56,000)",
                       *gain("False", target), stage="transfer") for target in (100, 1_000, 10_000))),
    Claim("Frozen features gain more from data than fine-tuned ones", "the same, and a head alone", ("photos",),
          tuple(photos(f"gain of a head on frozen features minus gain of fine-tuning, {target:,} photos",
                       *gain("True", target), *(Runs(-one.sign, one.where) for one in gain("False", target)),
                       stage="transfer") for target in (100, 1_000, 10_000))),
    Claim("More classes are better than few, on the same images",
          "44,000 photos, 100 classes minus their 20 superclasses",
          ("labels", "superclasses"),
          (photos("accuracy among the superclasses, 225,000 seen",
                  Runs(1, {"labels": ""}, "test/superclass_top1"), Runs(-1, {"labels": "superclasses"})),
           *(photos(f"{way}, {target:,} photos of CIFAR-10-JPEG",
                    *more(*({"labels": labels, "images": 44_000, "target_images": target, "frozen": frozen}
                            for labels in ("", "superclasses"))), stage="transfer")
             for way, frozen in (("fine-tuned", "False"), ("frozen", "True")) for target in (1_000,)))),
    Claim("Near-duplicates of the test images raise the score (in the paper they hardly do)",
          "44,000 photos with them minus 44,000 without", ("labels", "duplicates"),
          (photos("225,000 seen", *more({"excluded": ""}, {"excluded": "True"})),)),
    Claim("Pretraining helps detection and segmentation",
          "emoji by another artist, pretrained on 32,000 scenes minus from scratch, at equal steps",
          ("dense_transfer/boxes", "dense_transfer/masks"),
          tuple(photos(f"{task} of {target:,} scenes, {name}, rate {rate:g}",
                       *more(*({"task": task, "images": images, "target_images": target, "rate": rate}
                               for images in (32_000, 0))), metric=f"test/{name}", stage="transfer")
                for task, name, rate in (("boxes", "AP50", 1e-3), ("masks", "mIoU", 2e-3))
                for target in (200, 2_000))),
)


def main() -> None:
    print(TEXT)
    print("| claim | tested by | difference of the score | verdict |\n|---|---|---|---|")
    for claim in CLAIMS:
        rows = [row for name in claim.files for path in (RESULTS / name / "results.csv",
                                                                       RESULTS / "surface" / name / "results.csv")
                if path.is_file()
                for row in read_rows(path)]
        found = [find(contrast, rows) for contrast in claim.contrasts] or [Finding("", np.zeros(0))]
        for number, one in enumerate(found):
            claimed, how = (claim.text, claim.how) if number == 0 else ("", "")
            print(f"| {claimed} | {': '.join(filter(None, (how, one.what)))} | {one.figures} | {one.verdict} |")



TEXT = f"""# The paper's claims, one by one

Made by `python tools/claims.py` from the csv files in [surface](surface). A difference is paired by seed (the same
subset, initialisation and order). "Holds" and "does not hold" need the same sign in all of at least {FEWEST_SEEDS}
seeds, and a mean of more than twice its standard error over seeds. Unless a row says otherwise: test top-1,
ResNet-10 at a quarter of the usual width, rates swept with seed 0 and right labels. Each verdict is of the photos seen
that its row names, and longer runs may turn it, as with 20 % wrong labels against fewer photos: the joint law
([surface.md](surface.md)) had put the turn at some 450,000 photos seen, which were then run.
These are small networks on small photos; what holds here need not hold at the paper's scale.
"""

if __name__ == "__main__":
    main()
