"""Sound, written small and true to form."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.making import Made, network


def conv1(i: int, o: int, k: int = 3, **options: int) -> nn.Sequential:
    same = options.get("dilation", 1) * (k // 2)
    return nn.Sequential(nn.Conv1d(i, o, k, padding=same, **options), nn.BatchNorm1d(o), nn.ReLU())


class Res2Conv(nn.Module):
    """ECAPA-TDNN's Res2 layer: convolutions of the parts of a split by width."""

    def __init__(self, channels: int, scale: int = 4, dilation: int = 2) -> None:
        super().__init__()
        self.width, self.nums = channels // scale, scale - 1
        self.convs = nn.ModuleList(
            nn.Conv1d(self.width, self.width, 3, dilation=dilation, padding=dilation) for _ in range(self.nums)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(self.width) for _ in range(self.nums))

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(x, self.width, 1)
        for i in range(self.nums):
            sp = spx[i] if i == 0 else sp + spx[i]  # noqa: F821
            sp = self.bns[i](F.relu(self.convs[i](sp)))
            out = sp if i == 0 else torch.cat((out, sp), 1)  # noqa: F821
        return torch.cat((out, spx[self.nums]), 1)


class EcapaBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.mix, self.b = conv1(channels, channels, 1), Res2Conv(channels), conv1(channels, channels, 1)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool1d(1), nn.Conv1d(channels, 8, 1), nn.ReLU(), nn.Conv1d(8, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.mix(self.a(x)))
        return x + y * self.se(y)


class Ecapa(nn.Module):
    """ECAPA-TDNN (Desplanques et al. 2020): blocks, attentive statistics, an embedding of the speaker."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.first, self.block1, self.block2 = conv1(16, channels, 5), EcapaBlock(channels), EcapaBlock(channels)
        self.mix = nn.Conv1d(2 * channels, 48, 1)
        self.attention = nn.Sequential(
            nn.Conv1d(3 * 48, 16, 1), nn.ReLU(), nn.BatchNorm1d(16), nn.Tanh(), nn.Conv1d(16, 48, 1), nn.Softmax(2)
        )
        self.bn, self.fc = nn.BatchNorm1d(96), nn.Linear(96, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        a = self.block1(x)
        x = F.relu(self.mix(torch.cat((a, self.block2(x + a)), 1)))
        t = x.size(-1)
        mean, std = x.mean(2, keepdim=True), torch.sqrt(x.var(2, keepdim=True).clamp(min=1e-4))
        w = self.attention(torch.cat((x, mean.repeat(1, 1, t), std.repeat(1, 1, t)), 1))
        mu = (x * w).sum(2)
        sigma = torch.sqrt(((x**2 * w).sum(2) - mu**2).clamp(min=1e-4))
        return self.fc(self.bn(torch.cat((mu, sigma), 1)))


class HifiGan(nn.Module):
    """HiFi-GAN (Kong et al. 2020): upsampling and the mean of residual blocks, every layer under weight norm."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.pre, self.post = norm(nn.Conv1d(16, channels, 7, 1, 3)), norm(nn.Conv1d(channels // 4, 1, 7, 1, 3))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for i in range(2):
            width = channels // 2 ** (i + 1)
            self.ups.append(norm(nn.ConvTranspose1d(2 * width, width, 8, 4, 2)))
            self.blocks.append(nn.ModuleList(
                nn.ModuleList(norm(nn.Conv1d(width, width, k, 1, d * (k // 2), d)) for d in (1, 3)) for k in (3, 5)
            ))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            total = None
            for block in blocks:
                y = x
                for layer in block:
                    y = y + layer(F.leaky_relu(y, 0.1))
                total = y if total is None else total + y
            x = total / len(blocks)
        return torch.tanh(self.post(F.leaky_relu(x)))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """Weight norm as hooks, which torch deprecates and many models still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


class CausalConv(nn.Module):
    """EnCodec's convolution: weight norm of the old form, and padding on the left."""

    def __init__(self, i: int, o: int, k: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.pad = (k - 1) * dilation + 1 - stride
        self.conv = old_weight_norm(nn.Conv1d(i, o, k, stride, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.pad, 0), mode="reflect"))


class Encodec(nn.Module):
    """EnCodec's encoder and decoder (Défossez et al. 2022), without the quantiser."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inc, self.down = CausalConv(1, width, 7), CausalConv(width, 2 * width, 8, 4)
        self.res = nn.Sequential(nn.ELU(), CausalConv(width, width // 2, 3), nn.ELU(), CausalConv(width // 2, width, 1))
        self.lstm, self.code = nn.LSTM(2 * width, 2 * width, 2), CausalConv(2 * width, 12, 7)
        self.start, self.up = CausalConv(12, 2 * width, 7), nn.ConvTranspose1d(2 * width, width, 8, 4, 2)
        self.out = CausalConv(width, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        x = self.down(F.elu(x + self.res(x))).permute(2, 0, 1)
        x = (self.lstm(x)[0] + x).permute(1, 2, 0)
        x = self.start(self.code(F.elu(x)))
        return self.out(F.elu(self.up(F.elu(x))))


class Wavenet(nn.Module):
    """WaveNet (van den Oord et al. 2016): gated dilated convolutions, residual and skip layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 24, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(width, 24, 2, dilation=2**i) for i in range(3))
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(24, o, 1) for _ in range(3)) for o in (width, 32))
        self.end1, self.end2 = nn.Conv1d(32, 24, 1), nn.Conv1d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.embed(x), []
        for i, (f, g, res, skip) in enumerate(zip(self.filters, self.gates, self.residual, self.skip, strict=True)):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            skips.append(skip(y))
            x = x + res(y)
        return self.end2(F.relu(self.end1(F.relu(sum(skips)))))


class ConvTasnet(nn.Module):
    """Conv-TasNet (Luo and Mesgarani 2019): an encoder, a mask of it for each speaker, and a decoder."""

    def __init__(self, width: int = 32, speakers: int = 2) -> None:
        super().__init__()
        self.n, self.speakers = width, speakers
        self.encoder, self.decoder = nn.Conv1d(1, width, 16, 8), nn.ConvTranspose1d(width, 1, 16, 8)
        self.norm, self.bottleneck = nn.GroupNorm(1, width), nn.Conv1d(width, 16, 1)
        self.block = nn.Sequential(
            nn.Conv1d(16, 32, 1),
            nn.PReLU(),
            nn.Conv1d(32, 32, 3, padding=2, dilation=2, groups=32),
            nn.PReLU(),
            nn.Conv1d(32, 16, 1),
        )
        self.mask = nn.Conv1d(16, width * speakers, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = F.relu(self.encoder(x))
        y = self.bottleneck(self.norm(w))
        y = y + self.block(y)
        mask = self.mask(F.relu(y)).view(-1, self.speakers, self.n, w.shape[-1]).sigmoid()
        parts = (w.unsqueeze(1) * mask).view(-1, self.n, w.shape[-1])
        return self.decoder(parts).view(x.shape[0], self.speakers, -1)


class ConvModule(nn.Module):
    """Conformer's convolution module: a gated linear unit, depthwise, batch norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Conv1d(dim, 2 * dim, 1), nn.Conv1d(dim, dim, 1)
        self.depthwise, self.bn = nn.Conv1d(dim, dim, 7, padding=3, groups=dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.up(self.norm(x).transpose(1, 2)), 1)
        return self.down(F.silu(self.bn(self.depthwise(y)))).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ff1, self.ff2 = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 64), nn.SiLU(), nn.Linear(64, dim)) for _ in range(2)
        )
        self.norm, self.attention = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 4, batch_first=True)
        self.conv, self.last = ConvModule(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.last(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    """Conformer (Gulati et al. 2020) on subsampled features."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.sub, self.into = (
            nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
            nn.Linear(32, dim),
        )
        self.blocks, self.out = nn.Sequential(ConformerBlock(dim), ConformerBlock(dim)), nn.Linear(dim, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sub(x.unsqueeze(1))
        b, c, t, f = x.size()
        return self.out(self.blocks(self.into(x.transpose(1, 2).contiguous().view(b, t, c * f)))).log_softmax(-1)


def keywords() -> nn.Module:
    """DS-CNN for keywords (Zhang et al. 2017)."""
    blocks = [nn.Sequential(conv(24, 24, 3, groups=24), conv(24, 24, 1)) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(1, 24, (10, 4), 2, (5, 1)),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 12),
    )


class Broadcasted(nn.Module):
    """BC-ResNet (Kim et al. 2021): a residual over time that is broadcast over frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.freq = (
            conv(1, 16),
            nn.Sequential(nn.Conv2d(16, 16, (3, 1), padding=(1, 0), groups=16), nn.BatchNorm2d(16)),
        )
        self.time = nn.Sequential(
            nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=16), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 16, 1)
        )
        self.fc = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.freq(x)
        return self.fc(F.relu(x + y + self.time(y.mean(2, keepdim=True))).mean((2, 3)))


class Denoiser(nn.Module):
    """RNNoise (Valin 2018): gated recurrences that feed one another. The state is an input and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.vad = nn.Linear(20, 24), nn.GRU(24, 16, batch_first=True)
        self.noise, self.gains = nn.GRU(24 + 16 + 20, 24, batch_first=True), nn.Linear(24, 20)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y = torch.tanh(self.into(x))
        vad, first = self.vad(y, first)
        noise, second = self.noise(torch.cat([y, F.relu(vad), x], -1), second)
        return self.gains(noise).sigmoid(), (first, second)


class DeepSpeech(nn.Module):
    """DeepSpeech 2 (Amodei et al. 2016): convolutions, bidirectional recurrence with batch norm, a lookahead."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, (5, 5), 2, 2), nn.BatchNorm2d(8), nn.Hardtanh(0, 20, True))
        self.rnn1, self.norm, self.rnn2 = (
            nn.GRU(64, 24, bidirectional=True),
            nn.BatchNorm1d(24),
            nn.GRU(24, 24, bidirectional=True),
        )
        self.fc = nn.Linear(24, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        sizes = x.size()
        x = x.view(sizes[0], sizes[1] * sizes[2], sizes[3]).permute(2, 0, 1)
        x = self.rnn1(x)[0]
        x = x.view(x.size(0), x.size(1), 2, -1).sum(2)
        t, n = x.size(0), x.size(1)
        x = self.rnn2(self.norm(x.view(t * n, -1)).view(t, n, -1))[0]
        return self.fc(x.view(x.size(0), x.size(1), 2, -1).sum(2)).transpose(0, 1)


ENTRIES: dict[str, Callable[[], Made]] = {
    "ECAPA-TDNN": network(Ecapa, (1, 16, 32)),
    "HiFi-GAN": network(HifiGan, (1, 16, 16)),
    "EnCodec": network(Encodec, (1, 1, 128)),
    "WaveNet": network(Wavenet, (1, 1, 64)),
    "Conv-TasNet": network(ConvTasnet, (1, 1, 256)),
    "Conformer": network(Conformer, (1, 32, 16)),
    "keyword spotting (DS-CNN)": network(keywords, (1, 1, 40, 10)),
    "BC-ResNet": network(Broadcasted, (1, 1, 16, 32)),
    "RNNoise with its state": network(Denoiser, (1, 4, 20), (1, 1, 16), (1, 1, 24)),
    "DeepSpeech 2": network(DeepSpeech, (1, 1, 16, 24)),
}
