"""A detector true to form: YOLO11 with its backbone, its neck, and a head that keeps anchors by the shape of its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.making import Made, network


class Conv(nn.Module):
    def __init__(self, i: int, o: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, add: bool, e: float = 0.5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(i, int(o * e), 3), Conv(int(o * e), o, 3)
        self.add = add and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, i: int, o: int, add: bool) -> None:
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = Conv(i, 2 * self.c), Conv(3 * self.c, o)
        self.m = nn.ModuleList([self.inner(add)])

    def inner(self, add: bool) -> nn.Module:
        return Bottleneck(self.c, self.c, add, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3k(nn.Module):
    def __init__(self, c: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(c, c // 2), Conv(c, c // 2), Conv(c, c)
        self.m = nn.Sequential(Bottleneck(c // 2, c // 2, add, 1.0), Bottleneck(c // 2, c // 2, add, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k2(C2f):
    def inner(self, add: bool) -> nn.Module:
        return C3k(self.c, add)


class SPPF(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c // 2), Conv(c * 2, c)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(F.max_pool2d(y[-1], 5, 1, 2) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """Attention over pixels: queries, keys and values of unequal widths from one layer, and a position convolution."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(dim, dim + self.key_dim * num_heads * 2, act=False)
        self.proj, self.pe = Conv(dim, dim, act=False), Conv(dim, dim, 3, g=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], 2)
        weights = ((q.transpose(-2, -1) @ k) * self.scale).softmax(-1)
        y = (v @ weights.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y)


class PSA(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.attn = Attention(c, 2)
        self.ffn = nn.Sequential(Conv(c, c * 2), Conv(c * 2, c, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c // 2
        self.cv1, self.cv2, self.m = Conv(c, c), Conv(c, c), nn.Sequential(PSA(c // 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), 1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class DFL(nn.Module):
    """The mean of a distribution over distances, as a convolution with fixed weights."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(c, dtype=torch.float).view(1, c, 1, 1)
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Anchors and strides are attributes of the class at first. They are made when the shape of the input is new."""

    shape = None
    anchors, strides = torch.empty(0), torch.empty(0)

    def __init__(self, classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.nc, self.reg_max, self.stride = classes, 4, torch.tensor(strides, dtype=torch.float)
        self.no = classes + 4 * self.reg_max
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, 16, 3), Conv(16, 16, 3), nn.Conv2d(16, 4 * self.reg_max, 1)) for c in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                Conv(c, c, 3, g=c), Conv(c, 16), Conv(16, 16, 3, g=16), Conv(16, 16), nn.Conv2d(16, classes, 1)
            )
            for c in channels
        )
        self.dfl = DFL(self.reg_max)

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        for i, x in enumerate(maps):
            maps[i] = torch.cat((self.cv2[i](x), self.cv3[i](x)), 1)
        if self.training:
            return maps
        shape = maps[0].shape
        if self.shape != shape:
            self.anchors, self.strides = (t.transpose(0, 1) for t in _anchors(maps, self.stride))
            self.shape = shape
        flat = torch.cat([x.view(shape[0], self.no, -1) for x in maps], 2)
        box, score = flat.split((self.reg_max * 4, self.nc), 1)
        low, high = self.dfl(box).chunk(2, 1)
        first, last = self.anchors.unsqueeze(0) - low, self.anchors.unsqueeze(0) + high
        boxes = torch.cat(((first + last) / 2, last - first), 1) * self.strides
        return torch.cat((boxes, score.sigmoid()), 1)


def _anchors(maps: list[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    points, steps = [], []
    for x, stride in zip(maps, strides, strict=True):
        h, w = x.shape[2:]
        y, z = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((z, y), -1).view(-1, 2))
        steps.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points), torch.cat(steps)


class Yolo11(nn.Module):
    """`block` is C3k2, or C2f as in YOLOv8, which has no attention."""

    def __init__(self, block: type[C2f] = C3k2) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), block(16, 16, True))
        self.p3 = nn.Sequential(Conv(16, 16, 3, 2), block(16, 16, True))
        self.p4 = nn.Sequential(Conv(16, 32, 3, 2), block(32, 32, True), SPPF(32))
        self.attention = C2PSA(32) if block is C3k2 else nn.Identity()
        self.up, self.down = block(48, 16, False), Conv(16, 16, 3, 2)
        self.last = block(48, 32, False)
        self.detect = Detect(4, (16, 32), (8, 16))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        p3 = self.p3(self.stem(x))
        p4 = self.attention(self.p4(p3))
        p3 = self.up(torch.cat((F.interpolate(p4, scale_factor=2.0), p3), 1))
        p4 = self.last(torch.cat((self.down(p3), p4), 1))
        return self.detect([p3, p4])


ENTRIES: dict[str, Callable[[], Made]] = {
    "YOLOv8": network(lambda: Yolo11(C2f), (1, 3, 64, 64)),
    "YOLO11": network(Yolo11, (1, 3, 64, 64)),
}
