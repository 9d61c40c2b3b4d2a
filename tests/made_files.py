"""Small files that tests of sources share."""

import io
import tarfile

import numpy as np
from PIL import Image

from big_vision_lite.data.tar_images import TarImages


def jpeg(width=20, height=10, seed=0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tars(folder, images=3):
    folder.mkdir(exist_ok=True)
    for c, name in enumerate(("n02", "n01")):
        with tarfile.open(folder / f"{name}.tar", "w") as file:
            for i in range(images):
                info = tarfile.TarInfo(f"{name}_{i}.JPEG")
                data = jpeg(seed=10 * c + i)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("readme.txt")
            file.addfile(info, io.BytesIO(b""))
    return TarImages(str(folder))
