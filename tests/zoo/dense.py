"""Segmentation and detection, written small and true to form: outputs are maps, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn

from zoo.making import Made, network


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) as it is usually written: double convolutions, padding to the skip's size."""

    def __init__(self, bilinear: bool = True) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = (
            self.double(3, 12),
            self.double(12, 24),
            self.double(24, 24 if bilinear else 48),
        )
        wide = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.ups = nn.ModuleList(wide if bilinear else nn.ConvTranspose2d(i, i // 2, 2, 2) for i in (48, 24))
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


ENTRIES: dict[str, Callable[[], Made]] = {
    "U-Net with bilinear upsampling": network(UNet),
    "U-Net with double convolutions": network(lambda: UNet(False)),
    "DeepLabV3": network(DeepLab),
    "feature pyramid with shared heads (RetinaNet)": network(FeaturePyramid),
    "YOLOv8 head": network(Yolo),
    "YOLOv5 head": network(YoloV5),
}
