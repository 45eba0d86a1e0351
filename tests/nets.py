"""Small networks for tests: one for each structure that couples channels."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.network.survey import survey
from edgeprune.records import Groups


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class Head(nn.Module):
    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Plain(nn.Module):
    """Convolutions, then a flatten: every channel owns 16 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 12)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.b(self.a(x)), 2).flatten(1))


class Residual(nn.Module):
    """Two residual blocks. The second halves the image and has a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 6), conv(6, 8)
        self.b1, self.b2 = conv(8, 16, stride=2), conv(16, 16)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a2(self.a1(x))
        y = self.b2(self.b1(x))
        y += self.short(x)
        return self.head(F.relu(y))


class OptionA(nn.Module):
    """The parameter-free shortcut of He et al.: strided slice, then zero padding on the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.b1, self.b2 = conv(8, 16, stride=2), conv(16, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.b2(self.b1(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


class Concat(nn.Module):
    """A concatenation read by a convolution, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 4), conv(12, 6)
        self.d = conv(18, 10)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        ab = torch.cat([a, self.b(a)], 1)
        return self.head(self.d(torch.cat([ab, self.c(ab)], 1)))


class Chunk(nn.Module):
    """One half of the channels gates the other: a gated linear unit, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, dim=1)
        return self.head(self.b(value * torch.sigmoid(gate)))


class Depthwise(nn.Module):
    """Depthwise-separable, with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.dw = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.pw = conv(8, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pw(self.dw(self.stem(x))))


class Grouped(nn.Module):
    """A grouped convolution (ResNeXt) and group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g = conv(3, 16), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(8, 32)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.g(self.a(x)))))


class Bottlenecks(nn.Module):
    """ResNeXt's block, a depthwise convolution with a multiplier, and ShuffleNet's units with a shuffle between groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a, self.b, self.c = conv(16, 16, 1), conv(16, 24, groups=4), conv(24, 16, 1)
        self.multiplied = nn.Conv2d(16, 48, 3, padding=1, groups=16)
        self.first, self.second = conv(48, 24, 1, groups=2), conv(24, 16, 1, groups=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c(self.b(self.a(x)))
        x = self.first(F.relu(self.multiplied(x)))
        n, c, h, w = x.shape
        return self.head(self.second(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


class SqueezeExcite(nn.Module):
    """A gate computed from the channel means multiplies the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 8)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.b(x * gate))


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle: split, transpose, merge, sizes taken from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        return self.head(self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


class HardCoded(nn.Module):
    """A size fixed in the code: a cut of `a` would raise, so `a` must come back locked."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x.view(1, 2, 8, 8, 8).flatten(1, 2)))


class Normalised(nn.Module):
    """Layer normalisation over the channels: statistics that a cut would change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 5)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(self.norm(self.a(x.flatten(1)[:, :12])))))


class NoRule(nn.Module):
    """An operator without a rule between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.renorm(self.a(x), 2, 0, 1.0)))


class Shared(nn.Module):
    """One convolution used twice, and tied linear weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 8), conv(8, 8)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6)
        self.down.weight = self.up.weight
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x))).mean((2, 3))
        return self.fc(F.relu(self.up(x)) * F.relu(self.down(x)))


class Inner(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(8, width), conv(width, width)
        self.last, self.norm = nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.last(self.second(self.first(x)))))


class Attending(nn.Module):
    """A pre-norm transformer block. Its attention cannot be cut, its feed-forward layer can."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.before(x))
        x = x + F.scaled_dot_product_attention(y, y, y)
        return x + self.down(F.gelu(self.up(self.after(x))))


class Blocks(nn.Module):
    """Three blocks that can be removed, and one that cannot, since it changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.stage = nn.Sequential(Inner(6), Inner(4), conv(8, 8))
        self.attending = Attending()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(self.attending(x).mean(1))


class Attention(nn.Module):
    """Heads of 6 channels with a fixed scale. `kind`: a fused operator, products written out, or einsum."""

    head_width = 6

    def __init__(self, kind: str = "fused", channels: int = 8, heads: int = 4) -> None:
        super().__init__()
        inner = heads * self.head_width
        self.query, self.key, self.value = (nn.Linear(channels, inner) for _ in range(3))
        self.out = nn.Linear(inner, channels)
        self.scale, self.kind = self.head_width**-0.5, kind

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, self.head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.kind == "fused":
            y = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)
        elif self.kind == "written":
            scores = q @ k.transpose(-1, -2) * self.scale
            y = (scores if mask is None else scores + mask).softmax(-1) @ v
        else:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.scale
            y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Three kinds of attention over the pixels of an image, each with a shortcut, and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.mix = nn.ModuleList(Attention(kind) for kind in ("fused", "written", "einsum"))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
        for norm, mix in zip(self.norms, self.mix, strict=True):
            x = x + mix(norm(x))
        return self.fc((x + self.down(F.gelu(self.up(x)))).mean(1))


class Packed(nn.Module):
    """Query, key and value from one linear layer, as in ViT: viewed as 3 × heads × width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = conv(3, 8), nn.Linear(8, 3 * 4 * 6), nn.Linear(24, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, -1, 6).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)) * 6**-0.5).softmax(-1) @ v
        return self.fc(self.out(y.transpose(1, 2).flatten(2)).mean(1))


class Conv1D(nn.Module):
    """Hugging Face's linear layer of GPT-2. Its weight is (inputs, outputs), and its code uses its size."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 8), nn.Parameter(torch.randn(outputs) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class PackedHeads(nn.Module):
    """GPT-2's attention: query, key and value from one layer, split by an attribute of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = 4, 6, 24
        self.qkv, self.out = Conv1D(72, 8), Conv1D(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split(self.split_size, -1)
        q, k, v = (y.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for y in parts)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.out(y.transpose(1, 2).flatten(2))


class Transposed(nn.Module):
    """Layers whose weights are the right-hand side of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = conv(3, 8), nn.Parameter(torch.randn(8, 20) / 4)
        self.attention, self.up, self.down = PackedHeads(), Conv1D(16, 20), Conv1D(8, 16)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
        x = x + self.attention(x)
        return self.fc((x + self.down(F.gelu(self.up(torch.relu(x @ self.mix))))).mean(1))


class Layers(nn.Module):
    """PyTorch's own transformer layers, with nn.MultiheadAttention: self-attention, and cross-attention in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, norm_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
        return self.fc(self.decoder(x, self.encoder(x)).mean(1))


class ShuffleUnit(nn.Module):
    """ShuffleNet V2: half of the channels pass, the others are convolved, and all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.right = nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8), conv(8, 8, 1))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.right(right)], 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class C2f(nn.Module):
    """YOLOv8's block: a split, bottlenecks on the last part, all parts concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv(3, 16, 1), conv(8 * 4, 12, 1)
        self.inner = nn.ModuleList(nn.Sequential(conv(8, 8), conv(8, 8)) for _ in range(2))
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.stem(x).chunk(2, 1))
        for inner in self.inner:
            parts.append(parts[-1] + inner(parts[-1]))
        return self.head(self.last(torch.cat(parts, 1)))


class UNet(nn.Module):
    """Downsampling, then upsampling with transposed convolutions, and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up1, self.d1 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 10)
        self.up2, self.d2 = nn.ConvTranspose2d(10, 8, 2, 2), conv(16, 6)
        self.depthwise = nn.ConvTranspose2d(6, 6, 2, 2, groups=6)
        self.grouped = nn.ConvTranspose2d(6, 8, 2, 2, groups=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        y = self.d1(torch.cat([b, self.up1(self.c(F.max_pool2d(b, 2)))], 1))
        y = self.d2(torch.cat([a, self.up2(y)], 1))
        return self.out(self.grouped(F.relu(self.depthwise(y))))


class PixelShuffle(nn.Module):
    """Pixel shuffle and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 6), conv(6, 16), conv(4, 5), conv(20, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.pixel_shuffle(self.b(self.a(x)), 2))
        return self.head(self.d(F.pixel_unshuffle(x, 2)))


class Gated(nn.Module):
    """A gated linear unit, and repeated channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(8, 6), conv(12, 6)
        self.head = Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.glu(self.a(x), 1))
        x = self.c(x.repeat(1, 2, 1, 1))
        return self.head(torch.cat([x.repeat_interleave(2, 1), x], 1))


class Cells(nn.Module):
    """Cells of recurrences, called step by step over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(24, 10)
        self.gru, self.lstm, self.rnn = nn.GRUCell(10, 8), nn.LSTMCell(8, 6), nn.RNNCell(6, 7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x.transpose(1, 2).flatten(2)).relu()
        first = third = second = None
        for row in rows.unbind(1)[:3]:
            first = self.gru(row, first)
            second = self.lstm(first, second)
            third = self.rnn(second[0], third)
        return self.fc(third)


class Recurrent(nn.Module):
    """A bidirectional LSTM of two layers, a GRU and a plain RNN, over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.lstm = nn.LSTM(6 * 8, 10, 2, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(20, 12, batch_first=True), nn.RNN(12, 8, bias=False, batch_first=True)
        self.fc = nn.Linear(8 + 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 3, 1, 2).flatten(2)
        x, state = self.gru(self.lstm(x)[0])
        return self.fc(torch.cat([self.rnn(x)[0][:, -1], state[0]], 1))


class Tokens(nn.Module):
    """Token and mask inputs, an embedding tied to the output layer, and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.place = nn.Parameter(torch.randn(1, 6, 8))
        self.mix, self.norm = Attention(), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.write = nn.Linear(8, 20, bias=False)
        self.write.weight = self.embed.weight

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        x = self.embed(tokens) + self.place
        x = x + self.mix(x, (1 - mask[:, None, None, :].to(x.dtype)) * -1e4)
        x = self.norm(x + self.down(F.relu(self.up(x))))
        return {"tokens": self.write(x), "pooled": (x.mean(1), x[:, 0])}


NETS: dict[str, type[nn.Module]] = {
    net.__name__: net
    for net in (
        *(Plain, Residual, OptionA, Concat, Chunk, Depthwise, Grouped, SqueezeExcite, Shuffle, HardCoded, Normalised),
        *(
            Bottlenecks,
            NoRule,
            Shared,
            Blocks,
            Encoder,
            Packed,
            Layers,
            ShuffleUnit,
            C2f,
            UNet,
            PixelShuffle,
            Gated,
            Cells,
            Recurrent,
        ),
        *(Transposed, Tokens),
    )
}


def image() -> tuple[Tensor]:
    return (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def inputs_of(name: str) -> tuple[Tensor, ...]:
    """Example inputs for one of `NETS`."""
    if name == "Tokens":
        return torch.arange(6)[None], torch.tensor([[1, 1, 1, 1, 1, 0]])
    return image()


@cache
def surveyed(name: str) -> Groups:
    """The groups of one of `NETS`, which do not depend on its weights."""
    return survey(NETS[name](), inputs_of(name))
