"""Control, tables and fields, written small and true to form: several inputs, states, dictionaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.making import Made, network
from zoo.series import words


class Policy(nn.Module):
    """A policy of an image and of the robot's own state, with a value beside the action."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(3, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 24, 4, 2), nn.ReLU(), nn.Flatten())
        self.body, self.both = (
            nn.Sequential(nn.Linear(7, 24), nn.Tanh()),
            nn.Sequential(nn.Linear(24 * 9 + 24, 48), nn.ReLU()),
        )
        self.action, self.value = nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, image: Tensor, state: Tensor) -> dict[str, Tensor]:
        x = self.both(torch.cat([self.eye(image), self.body(state)], 1))
        return {"action": torch.tanh(self.action(x)), "value": self.value(x)}


class ActorCritic(nn.Module):
    """Soft actor-critic (Haarnoja et al. 2018): a mean, a bounded deviation, and two critics of state and goal."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))
        self.critics = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(2))

    def forward(self, state: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat([state, goal], -1)
        mean, deviation = self.actor(x).chunk(2, -1)
        action = torch.tanh(mean)
        values = [critic(torch.cat([x, action], -1)) for critic in self.critics]
        return action, deviation.clamp(-5, 2).exp(), torch.min(*values)


class RecurrentPolicy(nn.Module):
    """A policy whose state is an input and an output: model(x, h) -> (y, h)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(10, 24), nn.GRUCell(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(F.elu(self.into(x)), h)
        return self.out(h), h


class Dueling(nn.Module):
    """A dueling network (Wang et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.advantage = (
            nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU()),
            nn.Linear(32, 1),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): embeddings of categories, a network of numbers, and all their inner products."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 16) for _ in range(3))
        self.bottom, self.top = (
            nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()),
            nn.Sequential(nn.Linear(16 + 6, 32), nn.ReLU(), nn.Linear(32, 1)),
        )
        rows, columns = torch.tril_indices(4, 4, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        x = self.bottom(numbers)
        parts = torch.stack([x, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = torch.bmm(parts, parts.transpose(1, 2))[:, self.rows, self.columns]
        return self.top(torch.cat([x, products], 1))


class Cross(nn.Module):
    """Deep and cross network (Wang et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.cross, self.deep = (
            nn.ModuleList(nn.Linear(16, 16) for _ in range(2)),
            nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU()),
        )
        self.out = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.cross:
            y = x * layer(y) + y
        return self.out(torch.cat([y, self.deep(x)], 1))


class Radiance(nn.Module):
    """NeRF (Mildenhall et al. 2020): waves of the position, and a skip connection into the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU()),
            nn.Sequential(nn.Linear(72, 48), nn.ReLU()),
        )
        self.density, self.feature, self.colour = (
            nn.Linear(48, 1),
            nn.Linear(48, 32),
            nn.Sequential(nn.Linear(35, 24), nn.ReLU(), nn.Linear(24, 3), nn.Sigmoid()),
        )

    def forward(self, place: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        waves = (place[..., None] * 2.0 ** torch.arange(4)).flatten(1)
        x = torch.cat([waves.sin(), waves.cos()], 1)
        x = self.b(torch.cat([self.a(x), x], 1))
        return self.colour(torch.cat([self.feature(x), view], 1)), F.relu(self.density(x))


class Experts(nn.Module):
    """A soft mixture of experts (Jacobs et al. 1991)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = (
            nn.Linear(16, 3),
            nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)) for _ in range(3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], 1).mul(weights.unsqueeze(-1)).sum(1)


ENTRIES: dict[str, Callable[[], Made]] = {
    "policy of image and state": network(Policy, (1, 3, 40, 40), (1, 7)),
    "actor and critics": network(ActorCritic, (1, 9), (1, 3)),
    "recurrent policy": network(RecurrentPolicy, (1, 10), (1, 24)),
    "dueling network": network(Dueling, (1, 8)),
    "recommender (DLRM)": lambda: (Recommender(), (torch.zeros(1, 6), words(3, 20))),
    "deep and cross network": network(Cross, (1, 16)),
    "radiance field (NeRF)": network(Radiance, (1, 3), (1, 3)),
    "mixture of experts": network(Experts, (1, 16)),
}
