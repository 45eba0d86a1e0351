"""Make digits.npz from scikit-learn's copy of the images: python examples/digits/pack.py. It needs scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    data = load_digits()
    rest, test = train_test_split(np.arange(len(data.target)), test_size=0.2, stratify=data.target, random_state=0)
    train, valid = train_test_split(rest, test_size=0.25, stratify=data.target[rest], random_state=0)
    order = np.concatenate([train, valid, test])
    file = Path(__file__).with_name("digits.npz")
    np.savez_compressed(file, images=data.images[order].astype("uint8"), labels=data.target[order].astype("uint8"))


if __name__ == "__main__":
    main()
