"""Texts and time series, written small and true to form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.making import Made, network


class TextCnn(nn.Module):
    """A convolution of each width over words, the maximum over places (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.convs = nn.Embedding(99, 32), nn.ModuleList(nn.Conv1d(32, 24, k) for k in (3, 4, 5))
        self.fc = nn.Linear(72, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.fc(torch.cat([F.relu(layer(x)).max(2)[0] for layer in self.convs], 1))


class Tagger(nn.Module):
    """A bidirectional LSTM that tags words, with features of their characters (Lample et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.chars, self.char_cnn = (
            nn.Embedding(99, 24),
            nn.Embedding(40, 12),
            nn.Conv1d(12, 16, 3, padding=1),
        )
        self.lstm, self.fc = nn.LSTM(40, 24, bidirectional=True, batch_first=True), nn.Linear(48, 9)

    def forward(self, words: Tensor, chars: Tensor) -> Tensor:
        b, t, c = chars.shape
        shape = self.char_cnn(self.chars(chars.view(b * t, c)).transpose(1, 2)).max(2)[0].view(b, t, -1)
        return self.fc(self.lstm(torch.cat([self.words(words), shape], -1))[0])


class Seq2Seq(nn.Module):
    """An encoder and a decoder with attention to the encoder's states (Luong et al. 2015), forced by the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.enc, self.dec = (
            nn.Embedding(50, 16),
            nn.Embedding(40, 16),
            nn.GRU(16, 24, batch_first=True),
            nn.GRU(16, 24, batch_first=True),
        )
        self.match, self.mix, self.out = nn.Linear(24, 24, bias=False), nn.Linear(48, 32), nn.Linear(32, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.enc(self.source(source))
        y = self.dec(self.target(target), state)[0]
        weight = torch.bmm(self.match(y), memory.transpose(1, 2)).softmax(-1)
        return self.out(torch.tanh(self.mix(torch.cat([torch.bmm(weight, memory), y], -1))))


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.chomp_size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    """TCN's block (Bai et al. 2018): causal convolutions under weight norm, whose ends are cut off."""

    def __init__(self, i: int, o: int, dilation: int) -> None:
        super().__init__()
        norm, pad = parametrizations.weight_norm, 2 * dilation
        self.net = nn.Sequential(
            norm(nn.Conv1d(i, o, 3, padding=pad, dilation=dilation)), Chomp(pad), nn.ReLU(), nn.Dropout(0.2),
            norm(nn.Conv1d(o, o, 3, padding=pad, dilation=dilation)), Chomp(pad), nn.ReLU(), nn.Dropout(0.2),
        )  # fmt: skip
        self.downsample = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class Last(nn.Module):
    """A linear layer of the last place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, :, -1])


class InceptionTime(nn.Module):
    """InceptionTime (Fawaz et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.branches = (
            nn.Conv1d(3, 8, 1, bias=False),
            nn.ModuleList(nn.Conv1d(8, 12, k, padding=k // 2, bias=False) for k in (5, 9, 19)),
        )
        self.pooled, self.bn, self.fc = nn.Conv1d(3, 12, 1, bias=False), nn.BatchNorm1d(48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(x)
        y = torch.cat([*(branch(y) for branch in self.branches), self.pooled(F.max_pool1d(x, 3, 1, 1))], 1)
        return self.fc(F.relu(self.bn(y)).mean(2))


class Nbeats(nn.Module):
    """N-BEATS (Oreshkin et al. 2020): each stack takes its backcast from its input, and adds to the forecast."""

    def __init__(self, past: int = 24, future: int = 8, width: int = 32) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(
            nn.Sequential(nn.Linear(past, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(3)
        )
        self.back, self.fore = (nn.ModuleList(nn.Linear(width, size) for _ in range(3)) for size in (past, future))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | int = 0
        for stack, back, fore in zip(self.stacks, self.back, self.fore, strict=True):
            y = stack(x)
            x, total = x - back(y), total + fore(y)
        return total


class Dlinear(nn.Module):
    """DLinear (Zeng et al. 2023): a moving average and a rest, each with a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(24, 8), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        mean = F.avg_pool1d(F.pad(x, (2, 2), mode="replicate"), 5, 1)
        return (self.trend(mean) + self.rest(x - mean)).transpose(1, 2)


class PatchTransformer(nn.Module):
    """PatchTST in its first form (Nie et al. 2023): series are normalised, unfolded to patches, and mixed one by one."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.into, self.place = nn.Linear(8, dim), nn.Parameter(torch.randn(1, 7, dim) / 8)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(7 * dim, 8)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        y = ((x - mean) / std).permute(0, 2, 1).unfold(-1, 8, 4)
        b, c, n, p = y.shape
        y = self.encoder(self.into(y.reshape(b * c, n, p)) + self.place)
        return self.head(y.reshape(b, c, -1)).permute(0, 2, 1) * std + mean


class Autoencoder(nn.Module):
    """An LSTM that reads a series and one that writes it again, to find anomalies."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec, self.out = (
            nn.LSTM(3, 24, batch_first=True),
            nn.LSTM(24, 24, batch_first=True),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        code = self.enc(x)[1][0][-1]
        return self.out(self.dec(code.unsqueeze(1).repeat(1, x.shape[1], 1))[0])


def words(length: int = 12, size: int = 40) -> Tensor:
    return (torch.arange(length) % size)[None]


ENTRIES: dict[str, Callable[[], Made]] = {
    "TextCNN": lambda: (TextCnn(), (words(),)),
    "LSTM tagger with characters": lambda: (Tagger(), (words(6), words(48).view(1, 6, 8))),
    "sequence to sequence with attention": lambda: (Seq2Seq(), (words(8), words(6))),
    "TCN": network(lambda: nn.Sequential(TemporalBlock(3, 24, 1), TemporalBlock(24, 24, 2), Last(24)), (1, 3, 32)),
    "InceptionTime": network(InceptionTime, (1, 3, 48)),
    "N-BEATS": network(Nbeats, (1, 24)),
    "DLinear": network(Dlinear, (1, 24, 3)),
    "PatchTST, written out": lambda: (PatchTransformer(), (torch.arange(96.0).view(1, 32, 3).sin(),)),
    "LSTM autoencoder": network(Autoencoder, (1, 16, 3)),
}
