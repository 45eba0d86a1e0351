"""Networks for images, written small and true to form: attention, dense prediction, detection, generation, several images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo.images import Classifier, InvertedResidual, backbone
from zoo.making import Made, network

# ------------------------------------------------------------------------------------------------------ attention


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


# ------------------------------------------------------------------------------------------------ dense prediction


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) as it is usually written: double convolutions, padding to the skip's size."""

    def __init__(self, bilinear: bool = True) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = (
            self.double(3, 12),
            self.double(12, 24),
            self.double(24, 24 if bilinear else 48),
        )
        self.ups = nn.ModuleList(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) if bilinear else nn.ConvTranspose2d(i, i // 2, 2, 2)
            for i in (48, 24)
        )  # fmt: skip
        self.up1, self.up2 = self.double(48, 12 if bilinear else 24), self.double(24, 12)
        self.outc = nn.Conv2d(12, 2, 1)

    @staticmethod
    def double(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(conv(i, o), conv(o, o))

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(F.max_pool2d(a, 2))
        y = self.down2(F.max_pool2d(b, 2))
        for up, mix, skip in zip(self.ups, (self.up1, self.up2), (b, a), strict=True):
            y = up(y)
            dy, dx = skip.size()[2] - y.size()[2], skip.size()[3] - y.size()[3]
            y = F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            y = mix(torch.cat([skip, y], 1))
        return self.outc(y)


class DeepLab(nn.Module):
    """DeepLabV3 (Chen et al. 2017): dilated convolutions, and a pyramid of them with a global branch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(3, 16, stride=2), conv(16, 32, stride=2), nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.ReLU()
        )
        self.branches = nn.ModuleList(
            [conv(32, 12, 1), *(nn.Sequential(nn.Conv2d(32, 12, 3, padding=r, dilation=r), nn.ReLU()) for r in (2, 4))]
        )
        self.pool, self.project, self.out = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 12, 1), nn.ReLU()),
            conv(48, 16, 1),
            nn.Conv2d(16, 5, 1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        x = self.backbone(x)
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        y = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        return {"out": F.interpolate(self.out(y), size=size, mode="bilinear", align_corners=False)}


class FeaturePyramid(nn.Module):
    """A feature pyramid with RetinaNet's heads (Lin et al. 2017), which all levels share. It returns lists."""

    def __init__(self, anchors: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.c2, self.c3, self.c4 = (
            nn.Sequential(conv(3, 16, stride=2), conv(16, 16, stride=2)),
            conv(16, 24, stride=2),
            conv(24, 32, stride=2),
        )
        self.lateral, self.smooth = (
            nn.ModuleList(nn.Conv2d(i, 16, 1) for i in (16, 24, 32)),
            nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1) for _ in range(3)),
        )
        self.cls_tower, self.box_tower = conv(16, 16), conv(16, 16)
        self.cls, self.box = nn.Conv2d(16, anchors * classes, 3, 1, 1), nn.Conv2d(16, anchors * 4, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features = [self.c2(x)]
        features += [self.c3(features[0])]
        features += [self.c4(features[1])]
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        scores, boxes = [], []
        for level in levels:
            N, _, H, W = level.shape
            score = self.cls(self.cls_tower(level)).view(N, -1, self.classes, H, W).permute(0, 3, 4, 1, 2)
            scores.append(score.reshape(N, -1, self.classes))
            boxes.append(self.box(self.box_tower(level)).permute(0, 2, 3, 1).reshape(N, -1, 4))
        return scores, boxes


class Yolo(nn.Module):
    """YOLOv8's head (Jocher et al. 2023): distributions of distances, and anchors that are cached by shape."""

    shape: torch.Size | None = None
    anchors = strides = torch.empty(0)

    def __init__(self, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = classes, bins, classes + 4 * bins
        self.p3, self.p4 = nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=4)), conv(24, 32, stride=2)
        self.cv2 = nn.ModuleList(nn.Sequential(conv(i, 16), conv(16, 16), nn.Conv2d(16, 4 * bins, 1)) for i in (24, 32))
        self.cv3 = nn.ModuleList(nn.Sequential(conv(i, 16), conv(16, 16), nn.Conv2d(16, classes, 1)) for i in (24, 32))
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def make_anchors(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        points, strides = [], []
        for feature, stride in zip(features, (8, 16), strict=True):
            h, w = feature.shape[2:]
            y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            points.append(torch.stack((x, y), -1).view(-1, 2))
            strides.append(torch.full((h * w, 1), float(stride)))
        return torch.cat(points).transpose(0, 1), torch.cat(strides).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(x)
        features = [p3, self.p4(p3)]
        shape = features[0].shape
        outs = [torch.cat((self.cv2[i](f), self.cv3[i](f)), 1) for i, f in enumerate(features)]
        both = torch.cat([out.view(shape[0], self.no, -1) for out in outs], 2)
        if self.shape != shape:
            self.anchors, self.strides = self.make_anchors(features)
            self.shape = shape
        box, score = both.split((self.reg_max * 4, self.nc), 1)
        b, _, a = box.shape
        distance = self.dfl(box.view(b, 4, self.reg_max, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        low, high = distance.chunk(2, 1)
        first, last = self.anchors.unsqueeze(0) - low, self.anchors.unsqueeze(0) + high
        return torch.cat((torch.cat(((first + last) / 2, last - first), 1) * self.strides, score.sigmoid()), 1)


class YoloV5(nn.Module):
    """YOLOv5's head: predictions viewed as anchors × outputs, with grids that are made when a shape is new."""

    def __init__(self, classes: int = 4, anchors: int = 2) -> None:
        super().__init__()
        self.no, self.na, self.grid = classes + 5, anchors, [torch.empty(0), torch.empty(0)]
        self.p3, self.p4 = nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=4)), conv(24, 32, stride=2)
        self.m = nn.ModuleList(nn.Conv2d(i, self.no * anchors, 1) for i in (24, 32))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(x)
        z = []
        for i, y in enumerate([p3, self.p4(p3)]):
            y = self.m[i](y)
            bs, _, ny, nx = y.shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            if self.grid[i].shape[2:4] != y.shape[2:4]:
                v, u = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
                self.grid[i] = torch.stack((u, v), 2).expand(1, self.na, ny, nx, 2) - 0.5
            xy, wh, score = y.sigmoid().split((2, 2, self.no - 4), 4)
            z.append(
                torch.cat(((xy * 2 + self.grid[i]) * 8, (wh * 2) ** 2, score), 4).view(bs, self.na * nx * ny, self.no)
            )
        return torch.cat(z, 1)


# -------------------------------------------------------------------------------- generation, restoration, several images


class SuperResolution(nn.Module):
    """EDSR (Lim et al. 2017): residual blocks with a scale, then pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = (
            nn.Conv2d(3, 24, 3, 1, 1),
            nn.Sequential(nn.Conv2d(24, 96, 3, 1, 1), nn.PixelShuffle(2), nn.Conv2d(24, 3, 3, 1, 1)),
        )
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.head(x)
        for block in self.body:
            y = y + 0.1 * block(y)
        return self.tail(x + y)


class Generator(nn.Module):
    """DCGAN's generator (Radford et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((16, 32), (32, 24), (24, 16)):
            layers += [
                nn.ConvTranspose2d(i, o, 4, 2 if i < 33 and o < 32 else 1, 1 if o < 32 else 0, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(True),
            ]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])


def discriminator() -> nn.Module:
    """A discriminator with spectral norm (Miyato et al. 2018)."""
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 4, 2, 1)), nn.LeakyReLU(0.1), norm(nn.Conv2d(16, 24, 4, 2, 1)), nn.LeakyReLU(0.1), nn.Flatten(),
        norm(nn.Linear(24 * 64, 1)),
    )  # fmt: skip


class Vae(nn.Module):
    """The encoder and the decoder of a variational autoencoder, at the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mu, self.logvar = (
            nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=2)),
            nn.Linear(24 * 64, 8),
            nn.Linear(24 * 64, 8),
        )
        self.start, self.dec = (
            nn.Linear(8, 24 * 64),
            nn.Sequential(nn.ConvTranspose2d(24, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.enc(x).flatten(1)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        return self.dec(self.start(mu).view(-1, 24, 8, 8)), mu, logvar


class Diffusion(nn.Module):
    """A denoising U-Net (Ho et al. 2020): group norm, and a time step that shifts the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.shift1, self.shift2 = (
            nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32)),
            nn.Linear(32, 16),
            nn.Linear(32, 32),
        )
        self.inc, self.down, self.mid = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.Conv2d(32, 32, 3, 1, 1),
        )
        self.norms, self.up, self.out = (
            nn.ModuleList(nn.GroupNorm(4, c) for c in (16, 32, 32)),
            nn.ConvTranspose2d(32, 16, 2, 2),
            nn.Conv2d(32, 3, 3, 1, 1),
        )

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None].to(x.dtype) * torch.exp(torch.arange(8, dtype=x.dtype) * -0.5)
        t = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        a = self.inc(x) + self.shift1(t)[:, :, None, None]
        b = self.down(F.silu(self.norms[0](a))) + self.shift2(t)[:, :, None, None]
        y = b + self.mid(F.silu(self.norms[1](b)))
        return self.out(torch.cat([a, self.up(F.silu(self.norms[2](y)))], 1))


class Siamese(nn.Module):
    """One encoder for two images, compared by cosine (Bromley et al. 1993)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc = (
            nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=2), conv(24, 32)),
            nn.Linear(32, 16),
        )

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.fc(self.encoder(x).mean((2, 3))), dim=1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.embed(left) * self.embed(right)).sum(1)


class Flow(nn.Module):
    """RAFT in small (Teed and Deng 2020): all-pairs correlation, and a gated update that is called again and again."""

    def __init__(self, hidden: int = 16, steps: int = 3) -> None:
        super().__init__()
        self.steps, self.hidden = steps, hidden
        self.fnet, self.cnet = (
            nn.Sequential(conv(3, 16, stride=2), nn.Conv2d(16, 24, 3, 2, 1)),
            nn.Sequential(conv(3, 16, stride=2), nn.Conv2d(16, 2 * hidden, 3, 2, 1)),
        )
        self.corr, self.flow = conv(64, 16, 1), conv(2, 8)
        self.convz, self.convr, self.convq = (nn.Conv2d(2 * hidden + 24, hidden, 3, 1, 1) for _ in range(3))
        self.head = nn.Sequential(conv(hidden, 16), nn.Conv2d(16, 2, 3, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        f1, f2 = self.fnet(first), self.fnet(second)
        n, c, h, w = f1.shape
        corr = (f1.flatten(2).transpose(1, 2) @ f2.flatten(2)).transpose(1, 2).reshape(n, h * w, h, w) / c**0.5
        net, inp = torch.split(self.cnet(first), [self.hidden, self.hidden], 1)
        net, inp, flow = net.tanh(), inp.relu(), torch.zeros(n, 2, h, w)
        for _ in range(self.steps):
            x = torch.cat([inp, self.corr(corr), self.flow(flow)], 1)
            hx = torch.cat([net, x], 1)
            z, r = self.convz(hx).sigmoid(), self.convr(hx).sigmoid()
            net = (1 - z) * net + z * self.convq(torch.cat([r * net, x], 1)).tanh()
            flow = flow + self.head(net)
        return flow


class Video3d(nn.Module):
    """R(2+1)D (Tran et al. 2018): convolutions in space, then in time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 16, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False), nn.BatchNorm3d(16), nn.ReLU()
        )
        self.block = nn.Sequential(
            nn.Conv3d(16, 24, (1, 3, 3), 1, (0, 1, 1)),
            nn.BatchNorm3d(24),
            nn.ReLU(),
            nn.Conv3d(24, 16, (3, 1, 1), 1, (1, 0, 0)),
            nn.BatchNorm3d(16),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(F.relu(x + self.block(x)).mean((2, 3, 4)))


class TemporalShift(nn.Module):
    """TSM (Lin et al. 2019): parts of the channels move to the next and to the previous frame."""

    def __init__(self, frames: int = 4, fold: int = 4) -> None:
        super().__init__()
        self.frames, self.fold, self.stem, self.conv, self.head = (
            frames,
            fold,
            conv(3, 16, stride=2),
            conv(16, 16),
            Classifier(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, c, h, w = x.shape
        x = self.stem(x.view(n * t, c, h, w))
        y = x.view(n, t, *x.shape[1:])
        ahead = F.pad(y[:, 1:, : self.fold], (0, 0, 0, 0, 0, 0, 0, 1))
        back = F.pad(y[:, :-1, self.fold : 2 * self.fold], (0, 0, 0, 0, 0, 0, 1, 0))
        y = torch.cat([ahead, back, y[:, :, 2 * self.fold :]], 2).view_as(x)
        return self.head(x + self.conv(y)).view(n, t, -1).mean(1)


class Points(nn.Module):
    """PointNet (Qi et al. 2017): shared layers over points, a learned transform, a maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.turn = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ReLU()), nn.Linear(16, 9)
        self.mlp = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 48, 1), nn.BatchNorm1d(48), nn.ReLU()
        )
        self.fc = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(self.look(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        return self.fc(self.mlp((x.transpose(1, 2) @ turn).transpose(1, 2)).max(2)[0])


IMAGE = (1, 3, 32, 32)
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
    "U-Net with bilinear upsampling": network(UNet),
    "U-Net with double convolutions": network(lambda: UNet(False)),
    "DeepLabV3": network(DeepLab),
    "feature pyramid with shared heads (RetinaNet)": network(FeaturePyramid),
    "YOLOv8 head": network(Yolo),
    "YOLOv5 head": network(YoloV5),
    "super resolution (EDSR)": network(SuperResolution),
    "generator (DCGAN)": network(Generator, (1, 16)),
    "discriminator with spectral norm": network(discriminator),
    "variational autoencoder": network(Vae),
    "diffusion U-Net": lambda: (Diffusion(), (torch.zeros(IMAGE), torch.tensor([3]))),
    "siamese encoder": network(Siamese, IMAGE, IMAGE),
    "optical flow (RAFT)": network(Flow, IMAGE, IMAGE),
    "R(2+1)D": network(Video3d, (1, 3, 4, 16, 16)),
    "temporal shift (TSM)": network(TemporalShift, (1, 4, 3, 16, 16)),
    "PointNet": network(Points, (1, 3, 64)),
}
