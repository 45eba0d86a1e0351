"""The architectures of docs/models.md, small and with random weights: of Hugging Face's transformers, and our own."""

from __future__ import annotations

from collections.abc import Callable

from nets import NETS, inputs_of

from zoo import (
    attention,
    control,
    dense,
    detection,
    generation,
    hf_images,
    hf_sequences,
    hf_texts,
    images,
    mobile,
    series,
    sound,
)
from zoo.making import Made

STRUCTURES = {
    "concatenation (DenseNet)": "Concat",
    "split and shuffle (ShuffleNet V2)": "ShuffleUnit",
    "C2f (YOLOv8)": "C2f",
    "squeeze-and-excitation": "SqueezeExcite",
    "depthwise-separable convolution": "Depthwise",
    "grouped convolution and group norm": "Grouped",
    "U-Net with transposed convolutions": "UNet",
    "pixel shuffle": "PixelShuffle",
    "gated linear unit": "Gated",
    "gate of two halves, written out": "Chunk",
    "LSTM, GRU and plain recurrence": "Recurrent",
    "attention: fused, written out, einsum": "Encoder",
    "attention with packed query, key and value": "Packed",
    "nn.TransformerEncoderLayer and DecoderLayer": "Layers",
    "tokens and mask, tied weights, dict and tuple outputs": "Tokens",
    "option-A shortcuts (CIFAR ResNet)": "OptionA",
    "sizes fixed in the code": "HardCoded",
    "a module used twice, tied linear weights": "Shared",
    "an operator without a rule": "NoRule",
}


def _structure(name: str) -> Callable[[], Made]:
    return lambda: (NETS[name](), inputs_of(name))


# Title -> function that makes the network and its example inputs.
ZOO: dict[str, Callable[[], Made]] = {
    **hf_images.ENTRIES,
    **hf_texts.ENTRIES,
    **hf_sequences.ENTRIES,
    **images.ENTRIES,
    **mobile.ENTRIES,
    **attention.ENTRIES,
    **dense.ENTRIES,
    **detection.ENTRIES,
    **generation.ENTRIES,
    **sound.ENTRIES,
    **series.ENTRIES,
    **control.ENTRIES,
    **{title: _structure(name) for title, name in STRUCTURES.items()},
}
