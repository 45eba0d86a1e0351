"""Make digits.npz from scikit-learn's copy of the images: python examples/digits/pack.py. It needs scikit-learn."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    data = load_digits()
    rest, test = train_test_split(np.arange(len(data.target)), test_size=0.2, stratify=data.target, random_state=0)
    train, valid = train_test_split(rest, test_size=0.25, stratify=data.target[rest], random_state=0)
    order = np.concatenate([train, valid, test])
    arrays = {"images": data.images[order].astype("uint8"), "labels": data.target[order].astype("uint8")}
    # np.load reads LZMA as well as what np.savez_compressed writes. It is 6 kB smaller, which the package's limit needs.
    with zipfile.ZipFile(Path(__file__).with_name("digits.npz"), "w", zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            file.writestr(f"{name}.npy", content.getvalue())


if __name__ == "__main__":
    main()
