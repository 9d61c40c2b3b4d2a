"""What the files in configs/ need to be told."""

from pathlib import Path

from big_vision_lite import config
from big_vision_lite.scaling.studies.study import Study

CONFIGS = Path(__file__).parents[1] / "configs"
REQUIRED = {
    "image_folder.py": "root=/photos,size=32",
    "cifar100_resnet18.py": "root=/cifar100",
    "tfds.py": "name=cifar10,size=32",
    "pretrain/jft300m_like.py": "name=photos,subset=1000000,precision=0.8,vocabulary=1000,exclude=/ids.txt",
    "pretrain/imagenet21k.py": "root=/tars,hierarchy=/hierarchy.csv",
    "pretrain/imagenet1k.py": "v2=true",
    "transfer/folder.py": "root=/photos,images=1000,freeze=true",
    "transfer/tfds.py": "name=cifar10,subset=5000",
    "transfer/vtab.py": "task=dtd",
    "transfer/small_photos.py": "root=/photos,subset=500",
    "transfer/bccd_detection.py": "root=/bccd",
    "transfer/coco_detection.py": "root=/coco",
    "transfer/coco_keypoints.py": "root=/coco,recipe=simple",
    "transfer/voc07_detection.py": "root=/voc,recipe=c4",
    "transfer/voc12_segmentation.py": "root=/voc",
    "transfer/folder_segmentation.py": "root=/photos",
    "transfer/coco_check_detection.py": "root=/coco",
    "transfer/coco_check_segmentation.py": "root=/coco,subset=100",
    "studies/photos.py": "root=/photos",
    "studies/self_supervised.py": "root=/photos",
    "studies/pseudo_labels.py": "root=/photos",
    "studies/pruning.py": "root=/photos",
    "paper/tables.py": "table=coco",
    "paper/near_duplicates.py": "exclude=/ids.txt,root=/photos",
}
"""Arguments by file; some that are not required change more of the config."""
TABLE_STUDIES = ("imagenet", "coco", "voc07", "voc12", "data_size", "training_length", "classes", "capacity")
"""Values of paper/tables.py:table."""


def load_study(spec: str, **arguments: object) -> Study:
    """The study of ``FILE.py:argument=value`` below configs/, with more arguments."""
    more = ",".join(f"{name}={value}" for name, value in arguments.items())
    return config.load(f"{CONFIGS}/{spec}{',' if more and not spec.endswith(':') else ''}{more}", "study")
