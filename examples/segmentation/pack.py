"""Make nuclei.npz from the example image of StarDist: python examples/segmentation/pack.py FOLDER.

FOLDER holds img2d.tif and mask2d.tif: stardist/data/images of stardist 0.9.2 (pip download --no-deps stardist==0.9.2).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    image, mask = (np.asarray(Image.open(Path(sys.argv[1]) / f"{name}2d.tif")) for name in ("img", "mask"))
    file = Path(__file__).with_name("nuclei.npz")
    np.savez_compressed(file, image=image.astype("uint8"), nucleus=mask.astype("uint8"))


if __name__ == "__main__":
    main()
