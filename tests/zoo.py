"""Small architectures with random weights: from Hugging Face's transformers, and from `nets`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nets import NETS, inputs_of
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]


class Answer(nn.Module):
    """One field of a transformers model's output."""

    def __init__(self, model: nn.Module, field: str = "logits") -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        given = {} if mask is None else {"attention_mask": mask}
        return getattr(self.model(first, **given), self.field)


IMAGE = (torch.zeros(1, 3, 64, 64),)
TEXT = (torch.arange(1, 17)[None], torch.ones(1, 16, dtype=torch.long))


def _resnet() -> Made:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 2, 2, 1], num_labels=5)
    return Answer(ResNetForImageClassification(config)), IMAGE


def _regnet() -> Made:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        embedding_size=16, hidden_sizes=[32, 48, 64, 96], depths=[1, 2, 2, 1], groups_width=8, num_labels=5
    )
    return Answer(RegNetForImageClassification(config)), IMAGE


def _mobilenet() -> Made:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=64, num_labels=5)
    return Answer(MobileNetV2ForImageClassification(config)), IMAGE


def _convnext() -> Made:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], image_size=64, num_labels=5)
    return Answer(ConvNextForImageClassification(config)), IMAGE


def _vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_labels=5,
    )
    return Answer(ViTForImageClassification(config)), IMAGE


def _swin() -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return Answer(SwinForImageClassification(config)), IMAGE


def _bert() -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=99, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, num_labels=5
    )
    return Answer(BertForSequenceClassification(config)), TEXT


def _distilbert() -> Made:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=99, dim=48, n_layers=2, n_heads=4, hidden_dim=96, num_labels=5)
    return Answer(DistilBertForSequenceClassification(config)), TEXT


def _gpt2() -> Made:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=99, n_embd=48, n_layer=2, n_head=4, n_positions=32, num_labels=5, pad_token_id=0, use_cache=False,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return Answer(GPT2ForSequenceClassification(config)), TEXT


def _wav2vec() -> Made:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=12,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(24, 24, 32),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Answer(Wav2Vec2ForCTC(config)), (torch.zeros(1, 4000),)


def _own(name: str) -> Callable[[], Made]:
    return lambda: (NETS[name](), inputs_of(name))


# Title -> function that makes the network and its example inputs.
ZOO: dict[str, Callable[[], Made]] = {
    "ResNet": _resnet,
    "RegNet": _regnet,
    "MobileNetV2": _mobilenet,
    "ConvNeXt": _convnext,
    "ViT": _vit,
    "Swin": _swin,
    "BERT": _bert,
    "DistilBERT": _distilbert,
    "GPT-2": _gpt2,
    "Wav2Vec2": _wav2vec,
    "concatenation (DenseNet)": _own("Concat"),
    "split and shuffle (ShuffleNet V2)": _own("ShuffleUnit"),
    "C2f (YOLOv8)": _own("C2f"),
    "squeeze-and-excitation": _own("SqueezeExcite"),
    "depthwise-separable convolution": _own("Depthwise"),
    "grouped convolution and group norm": _own("Grouped"),
    "U-Net with transposed convolutions": _own("UNet"),
    "pixel shuffle": _own("PixelShuffle"),
    "gated linear unit": _own("Gated"),
    "gate of two halves, written out": _own("Chunk"),
    "LSTM, GRU and plain recurrence": _own("Recurrent"),
    "attention: fused, written out, einsum": _own("Encoder"),
    "attention with packed query, key and value": _own("Packed"),
    "nn.TransformerEncoderLayer and DecoderLayer": _own("Layers"),
    "tokens and mask, tied weights, dict and tuple outputs": _own("Tokens"),
    "option-A shortcuts (CIFAR ResNet)": _own("OptionA"),
    "sizes fixed in the code": _own("HardCoded"),
    "a module used twice, tied linear weights": _own("Shared"),
    "an operator without a rule": _own("NoRule"),
}
