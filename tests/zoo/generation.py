"""Generation, restoration, several images and video, written small and true to form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.images import Classifier
from zoo.making import Made, network


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
