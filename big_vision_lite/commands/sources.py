"""A source on the command line: recognised by what is there, with its fields after a colon."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

from big_vision_lite import config as configs
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.errors import UserError, nearest

FORMS = "a folder, a .json, .csv or .py file, 'emoji_scenes', or the name of a TFDS data set"


def source_of(spec: str) -> Source:
    """The source that ``PATH_OR_NAME`` or ``PATH_OR_NAME:field=value,field=value`` stands for.

    A folder is a VOC tree when it has Annotations/, images with masks when it has
    images/ and masks/, prepared TFDS data when it has dataset_info.json, tar files when
    it has some, else images in folders. A config file, with its arguments, stands for what it trains on.

    Raises:
      UserError: there is no such thing, or it has no such field.
    """
    if _is_config(spec):
        return configs.load(spec).train.source
    place, fields = (*re.split(r":(?=[a-z_]+=)", spec, maxsplit=1), "")[:2]
    kind, known = _recognised(place)
    hints = typing.get_type_hints(kind)
    for piece in filter(None, re.split(r",(?=[a-z_]+=)", fields)):
        name, _, value = piece.partition("=")
        if name not in hints:
            raise UserError(f"{spec}: {kind.__name__} has no field {name!r}" +
                            nearest(name, [f.name for f in dataclasses.fields(kind)]))
        try:
            known[name] = configs.parse(value, hints[name])
        except ValueError:
            raise UserError(f"{spec}: {name}={value!r} is not {inspect.formatannotation(hints[name])}") from None
    try:
        return kind(**known)
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{spec}: {error}; give fields as {place}:field=value") from None


def input_of(spec: str) -> Input | None:
    """What a config trains on; None when ``spec`` is not a config."""
    return configs.load(spec).train if _is_config(spec) else None


def _is_config(spec: str) -> bool:
    return ".py" in spec and spec.partition(".py")[2][:1] in ("", ":")


def _recognised(place: str) -> tuple[type[Source], dict[str, object]]:
    """The class of a source, and the field that says where it is."""
    from big_vision_lite.data.coco_json import CocoJson
    from big_vision_lite.data.csv_labels import CsvLabels
    from big_vision_lite.data.emoji_scenes import EmojiScenes
    from big_vision_lite.data.image_folder import ImageFolder
    from big_vision_lite.data.mask_folder import MaskFolder
    from big_vision_lite.data.tar_images import TarImages
    from big_vision_lite.data.tfds_source import Tfds
    from big_vision_lite.data.voc_tree import VocTree

    path = Path(place).expanduser()
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            return Tfds, {"name": f"{path.parent.name}:{path.name}", "data_dir": str(path.parent.parent)}
        if (path / "Annotations").is_dir():
            return VocTree, {"root": place}
        if (path / "images").is_dir() and (path / "masks").is_dir():
            return MaskFolder, {"root": place}
        if any(path.glob("*.tar")):
            return TarImages, {"path": place}
        return ImageFolder, {"root": place}
    if place == "emoji_scenes":
        return EmojiScenes, {}
    if path.suffix in (".json", ".csv", ".tar"):
        if not path.is_file():
            raise UserError(f"there is no file {place!r}; a source is {FORMS}")
        return {".json": (CocoJson, {"annotations": place}), ".csv": (CsvLabels, {"file": place}),
                ".tar": (TarImages, {"path": place})}[path.suffix]
    if place.startswith((".", "/", "~")) or not place:
        raise UserError(f"there is nothing at {place!r}; a source is {FORMS}")
    return Tfds, {"name": place}
