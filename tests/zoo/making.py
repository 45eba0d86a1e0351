"""Makes small networks with random weights: from classes of Hugging Face's transformers and their configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]


class Answer(nn.Module):
    """Fields of a transformers model's output. The inputs get their names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names, self.fields = model, names, fields

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | Tensor:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        answers = tuple(getattr(found, field) for field in self.fields)
        return answers if len(answers) > 1 else answers[0]


Inputs = dict[str, Tensor]  # by the names of the model's arguments


def image(size: int = 64, channels: int = 3) -> Inputs:
    return {"pixel_values": torch.zeros(1, channels, size, size)}


def video(frames: int = 4, size: int = 32) -> Inputs:
    return {"pixel_values": torch.zeros(1, frames, 3, size, size)}


def text(length: int = 16) -> Inputs:
    return {"input_ids": torch.arange(1, length + 1)[None], "attention_mask": torch.ones(1, length, dtype=torch.long)}


def waves(samples: int = 4000) -> Inputs:
    return {"input_values": torch.zeros(1, samples)}


def mel(frames: int = 64, bands: int = 16) -> Inputs:
    return {"input_features": torch.zeros(1, frames, bands)}


def series(length: int = 32, channels: int = 3) -> Inputs:
    return {"past_values": torch.zeros(1, length, channels)}


def of(name: str, inputs: Inputs, *fields: str, **config: Any) -> Callable[[], Made]:
    """A class of transformers, made from a configuration. By default its logits are the output."""

    def make() -> Made:
        import transformers

        kind = getattr(transformers, name)
        known = kind.config_class(**config)
        return Answer(kind(known), tuple(inputs), fields or ("logits",)), tuple(inputs.values())

    return make


def of_tensor(name: str, inputs: tuple[Tensor, ...], **config: Any) -> Callable[[], Made]:
    """A class of transformers that takes and returns a tensor."""

    def make() -> Made:
        import transformers

        kind = getattr(transformers, name)
        return kind(kind.config_class(**config)), inputs

    return make


def of_backbone(name: str, inputs: Inputs, *fields: str, backbone: tuple[str, dict[str, Any]], **config: Any) -> Any:
    """The same with a backbone, which is a class of a configuration and its settings."""

    def make() -> Made:
        import transformers

        own = getattr(transformers, backbone[0])(**backbone[1])
        return of(name, inputs, *fields, backbone_config=own, **config)()

    return make


TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
WORDS = {"vocab_size": 99, "num_labels": 5, "pad_token_id": 0}
PATCHES = {"image_size": 64, "patch_size": 16, "num_labels": 5}
DECODER = {**TINY, **WORDS, "num_key_value_heads": 2, "head_dim": 12, "use_cache": False}
SPEECH = {
    **TINY,
    "vocab_size": 12,
    "conv_dim": (24, 24, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": 5}
PYRAMID = {
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "num_labels": 5,
    "sr_ratios": [8, 4, 2, 1],
}
RESNET = (
    "ResNetConfig",
    {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
)
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def network(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Made]:
    """A network of our own, and zeros of these shapes as its inputs; by default one small image."""
    return lambda: (make(), tuple(torch.zeros(shape) for shape in shapes or [(1, 3, 32, 32)]))
