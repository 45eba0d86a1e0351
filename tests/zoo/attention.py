"""Vision transformers and mixers, written small and true to form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn

from zoo.images import backbone
from zoo.making import Made, network
from zoo.mobile import InvertedResidual


class Attention(nn.Module):
    """timm's attention: packed query, key and value, the fused operator, then a reshape to the width of the input."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


def mlp(dim: int, hidden: int, out: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, out or dim))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, mix: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            mix or Attention(dim),
            nn.LayerNorm(dim),
            mlp(dim, 2 * dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Deit(nn.Module):
    """DeiT in timm's form (Touvron et al. 2021), with class and distillation tokens."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls, self.dist = nn.Parameter(torch.randn(1, 1, dim) / 8), nn.Parameter(torch.randn(1, 1, dim) / 8)
        self.pos = nn.Parameter(torch.randn(1, 18, dim) / 8)
        self.blocks, self.norm = nn.Sequential(*(Block(dim) for _ in range(3))), nn.LayerNorm(dim)
        self.head, self.head_dist = nn.Linear(dim, 5), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.dist.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = self.norm(self.blocks(x))
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


class LevitAttention(nn.Module):
    """LeViT's attention (Graham et al. 2021): batch norm after linear layers, keys narrower than values, a bias table."""

    def __init__(self, dim: int, key_dim: int = 8, num_heads: int = 3, ratio: int = 2, places: int = 16) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.d, self.scale = num_heads, key_dim, ratio * key_dim, key_dim**-0.5
        self.dh = self.d * num_heads
        self.qkv, self.bn = (
            nn.Linear(dim, self.dh + 2 * key_dim * num_heads, bias=False),
            nn.BatchNorm1d(self.dh + 2 * key_dim * num_heads),
        )
        self.proj, self.bn2 = nn.Linear(self.dh, dim, bias=False), nn.BatchNorm1d(dim)
        self.biases = nn.Parameter(torch.zeros(num_heads, places))
        distance = (torch.arange(places)[:, None] - torch.arange(places)[None]).abs()
        self.register_buffer("index", distance)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x)
        qkv = self.bn(qkv.flatten(0, 1)).reshape_as(qkv)
        q, k, v = qkv.view(B, N, self.num_heads, -1).split([self.key_dim, self.key_dim, self.d], 3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attn = (q @ k * self.scale + self.biases[:, self.index]).softmax(-1)
        y = (attn @ v).transpose(1, 2).reshape(B, N, self.dh)
        y = self.proj(F.hardswish(y))
        return x + self.bn2(y.flatten(0, 1)).reshape_as(y)


class Levit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=2), conv(24, 32, stride=2))
        self.attn, self.head = nn.Sequential(LevitAttention(32), LevitAttention(32)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attn(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class TinyVitBlock(nn.Module):
    """TinyViT's block (Wu et al. 2022): attention in windows, split by key_dim, then a depthwise convolution."""

    def __init__(self, dim: int, resolution: int = 8, heads: int = 4, window: int = 4) -> None:
        super().__init__()
        self.resolution, self.window, self.heads, self.key_dim = resolution, window, heads, dim // heads
        self.d, self.scale = self.key_dim, self.key_dim**-0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.local = nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1, groups=dim, bias=False), nn.BatchNorm2d(dim))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), mlp(dim, 2 * dim))

    def attend(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(B, N, self.heads, -1)
        q, k, v = (y.permute(0, 2, 1, 3) for y in qkv.split([self.key_dim, self.key_dim, self.d], 3))
        y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, N, self.heads * self.d))

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        n, w = self.resolution // self.window, self.window
        y = x.view(B, n, w, n, w, C).transpose(2, 3).reshape(B * n * n, w * w, C)
        y = self.attend(y).view(B, n, n, w, w, C).transpose(2, 3).reshape(B, L, C)
        x = x + y
        x = self.local(x.transpose(1, 2).reshape(B, C, self.resolution, self.resolution)).view(B, C, L).transpose(1, 2)
        return x + self.mlp(x)


class TinyVit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 16, stride=2), InvertedResidual(16, 32, 16, act=nn.GELU), conv(16, 32, stride=2)
        )
        self.blocks, self.head = nn.Sequential(TinyVitBlock(32), TinyVitBlock(32)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class GatedConv(nn.Module):
    """MambaOut's block (Yu and Wang 2024): a gated linear unit with a convolution of a part of the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden, part = 2 * dim, dim // 2
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)
        self.split_indices = (hidden, hidden - part, part)
        self.conv = nn.Conv2d(part, part, 7, padding=3, groups=part)

    def forward(self, x: Tensor) -> Tensor:
        g, i, c = torch.split(self.fc1(self.norm(x)), self.split_indices, -1)
        c = self.conv(c.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.fc2(F.gelu(g) * torch.cat((i, c), -1))


class MambaOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = (
            conv(3, 24, stride=2),
            nn.Sequential(GatedConv(24), GatedConv(24)),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class LinearAttention(nn.Module):
    """EfficientViT's attention (Cai et al. 2023): ReLU of queries and keys, and no softmax."""

    def __init__(self, dim: int, width: int = 8) -> None:
        super().__init__()
        self.dim, self.qkv, self.proj = width, nn.Conv2d(dim, 3 * dim, 1, bias=False), conv(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        qkv = self.qkv(x).reshape(B, -1, 3 * self.dim, H * W)
        q, k, v = qkv[:, :, : self.dim], qkv[:, :, self.dim : 2 * self.dim], qkv[:, :, 2 * self.dim :]
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        y = (v @ k.transpose(-1, -2)) @ q
        y = y[:, :, :-1] / (y[:, :, -1:] + 1e-6)
        return x + self.proj(y.reshape(B, -1, H, W))


class Mixer(nn.Module):
    """MLP-Mixer's block (Tolstikhin et al. 2021): a layer over the places, then one over the channels."""

    def __init__(self, dim: int, places: int = 16) -> None:
        super().__init__()
        self.norm1, self.tokens, self.norm2, self.channels = (
            nn.LayerNorm(dim),
            mlp(places, 24),
            nn.LayerNorm(dim),
            mlp(dim, 64),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class SpatialGate(nn.Module):
    """gMLP's block (Liu et al. 2021): one half of the channels, mixed over the places, gates the other."""

    def __init__(self, dim: int, places: int = 16) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.LayerNorm(dim), nn.Linear(dim, 64), nn.LayerNorm(32)
        self.mix, self.down = nn.Linear(places, places), nn.Linear(32, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        v = self.mix(self.gate(v).transpose(-1, -2)).transpose(-1, -2)
        return x + self.down(u * v)


class Patches(nn.Module):
    """Blocks over the patches of an image."""

    def __init__(self, *blocks: nn.Module, dim: int = 32) -> None:
        super().__init__()
        self.patch, self.blocks, self.norm, self.head = (
            nn.Conv2d(3, dim, 8, 8),
            nn.Sequential(*blocks),
            nn.LayerNorm(dim),
            nn.Linear(dim, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class ConvNext(nn.Module):
    """ConvNeXt's block (Liu et al. 2022): depthwise, layer norm over the channels, two linear layers, a layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down, self.gamma = (
            nn.Linear(dim, 4 * dim),
            nn.Linear(4 * dim, dim),
            nn.Parameter(torch.full((dim,), 0.1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


ENTRIES: dict[str, Callable[[], Made]] = {
    "DeiT in timm's form": network(Deit),
    "LeViT, written out": network(Levit),
    "TinyViT": network(TinyVit),
    "MambaOut": network(MambaOut),
    "EfficientViT": network(
        lambda: backbone(
            conv(3, 24, stride=2), LinearAttention(24), InvertedResidual(24, 48, 24), LinearAttention(24), out=24
        )
    ),
    "MLP-Mixer": network(lambda: Patches(Mixer(32), Mixer(32))),
    "gMLP": network(lambda: Patches(SpatialGate(32), SpatialGate(32))),
    "ConvNeXt, written out": network(lambda: backbone(nn.Conv2d(3, 24, 4, 4), ConvNext(24), ConvNext(24), out=24)),
}
