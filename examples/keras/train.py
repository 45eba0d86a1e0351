"""Train the Keras model that edgeprune starts from: python examples/keras/train.py, a few minutes on two cores."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, while it is imported

import keras
import numerals
from keras import layers

EPOCHS = 20
RATE = 0.01


def bottleneck(x: keras.KerasTensor, name: str, expansion: int, filters: int, stride: int = 1) -> keras.KerasTensor:
    """An inverted residual of MobileNetV2 (Sandler et al. 2018)."""
    y = layers.Conv2D(expansion, 1, use_bias=False, name=f"{name}_expand")(x)
    y = layers.ReLU(6.0, name=f"{name}_expand_relu")(
        layers.BatchNormalization(momentum=0.9, name=f"{name}_expand_bn")(y)
    )
    y = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(
        layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(y)
    )
    y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project")(y)
    y = layers.BatchNormalization(momentum=0.9, name=f"{name}_project_bn")(y)
    same = stride == 1 and x.shape[-1] == filters
    return layers.Add(name=f"{name}_add")([x, y]) if same else y


def build() -> keras.Model:
    """A small MobileNetV2 for 16×16 grey images. It returns a logit for each digit."""
    images = keras.Input((16, 16, 1), name="images")
    x = layers.Conv2D(24, 3, 2, "same", use_bias=False, name="stem")(images)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(momentum=0.9, name="stem_bn")(x))
    for name, expansion, filters, stride in (
        ("block_1", 96, 24, 1),
        ("block_2", 96, 24, 1),
        ("block_3", 96, 32, 1),
        ("block_4", 128, 32, 1),
        ("block_5", 128, 32, 1),
    ):
        x = bottleneck(x, name, expansion, filters, stride)
    x = layers.Conv2D(128, 1, use_bias=False, name="head")(x)
    x = layers.ReLU(6.0, name="head_relu")(layers.BatchNormalization(momentum=0.9, name="head_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(10, name="digits")(x), name="numerals")


def main() -> None:
    keras.utils.set_random_seed(0)
    model, train = build(), numerals.train_batches()
    rate = keras.optimizers.schedules.CosineDecay(RATE, EPOCHS * len(train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    file = Path(__file__).with_name("numerals.keras")
    best = keras.callbacks.ModelCheckpoint(file, monitor="val_accuracy", save_best_only=True, verbose=0)
    model.fit(train, epochs=EPOCHS, validation_data=numerals.valid_batches(), callbacks=[best], verbose=2)
    model = keras.saving.load_model(file)
    model.compile(loss=loss, metrics=["accuracy"])
    for name, split in (("valid", numerals.valid_batches()), ("test", numerals.test_batches())):
        print(f"{name} accuracy {model.evaluate(split, verbose=0)[1]:.4f}")
    keras.saving.load_model(file, compile=False).save(file)  # without the optimiser's state, which is larger


if __name__ == "__main__":
    main()
