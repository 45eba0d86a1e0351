"""A keyword-spotting network that TensorFlow saved and tf2onnx converted: the groups of the same network in Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.frontends import onnx
from edgeprune.frontends.keras import files
from edgeprune.frontends.keras.build import build
from edgeprune.network.survey import survey

FILE = Path(__file__).with_name("keywords.onnx")  # tensorflow-cpu 2.21.0 and tf2onnx 1.17.0, random weights


def keywords() -> Any:
    """The network of the file: a DS-CNN (Zhang et al. 2017) of 64 channels, as its author wrote it in Keras."""
    layers = files.require_keras().layers
    sound = files.require_keras().Input((49, 10, 1), name="mfcc")
    x = layers.Conv2D(64, (10, 4), 2, "same", use_bias=False)(sound)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 1, use_bias=False)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return files.require_keras().Model(sound, layers.Dense(12, activation="softmax", name="words")(x))


def test_the_groups_are_those_of_the_keras_model() -> None:
    inputs = onnx.example_inputs(FILE)
    assert inputs[0].shape == (1, 49, 10, 1)
    found = survey(onnx.network(FILE), inputs)
    with files.silent():
        expected = survey(build(keywords()).module.eval(), inputs)
    assert found.macs(found.full()) == expected.macs(expected.full())
    shares = [groups.macs(groups.least()) / groups.macs(groups.full()) for groups in (found, expected)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)
    assert [group.width for group in found.free] == [group.width for group in expected.free] == [64] * 5
