"""A planar quadrotor among hills: the simulation, the data, the network, and the functions of edgeprune.toml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Policy = Callable[[np.ndarray], np.ndarray]  # observations (M, 8) -> actions (M, 2)

# ------------------------------------------------------------------------------------------------ the quadrotor
# Two rotors on a beam, in a vertical plane. State: x and z, m; tilt, rad; their rates. Action: the thrust of the left
# and of the right rotor, from -1, none, to 1, the vehicle's weight; 0 is half the weight, and both at 0 hover.

GRAVITY = 9.81
ARM = 0.25  # m; the mass sits in the rotors, so that the moment of inertia is the mass times ARM²
STEP = 0.05  # s, from one action to the next

TILT = 0.45  # rad, either way
GROUND = -0.1  # m, below the target, which is the origin
HILL = 0.5  # m, half the width of a hill where it is 1/e as high as its top

STATE_COST = np.array([1, 1, 0.1, 0.2, 0.2, 0.02])
ACTION_COST = 0.02
VIOLATION_COST = 50  # per rad or m beyond a limit
WORST_COST = 15  # of a step: the highest cost, at any distance

# ------------------------------------------------------------------------------------------------- the episodes

EPISODES = 16
STEPS = 100
GUSTS = np.array([0, 0, 0, 0.05, 0.05, 0.1])  # standard deviation of what a step's gust adds to the state
EPISODE_SEEDS = {"valid": 16, "test": 17}
EXPERT_COST = {"valid": 1.2293, "test": 0.8346}  # the controller's mean cost a step in them; measured by labels.py

SCALE = np.array([3, 2, 0.4, 2, 2, 2, 2, 1])  # of the observations: the state, and where the hill is and how high


def derivative(state: Any, action: Any) -> Any:
    """The state's derivative by time. Takes rows of numpy arrays or of CasADi expressions."""
    thrust = GRAVITY * (1 + (action[0] + action[1]) / 2)
    sideways, upwards = -thrust * np.sin(state[2]), thrust * np.cos(state[2]) - GRAVITY
    turning = GRAVITY / (2 * ARM) * (action[1] - action[0])
    return np.vstack([state[3], state[4], state[5], sideways, upwards, turning])


def advance(state: Any, action: Any) -> Any:
    """The state a step later, by the classical Runge-Kutta method."""
    k1 = derivative(state, action)
    k2 = derivative(state + STEP / 2 * k1, action)
    k3 = derivative(state + STEP / 2 * k2, action)
    k4 = derivative(state + STEP * k3, action)
    return state + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def ground(x: Any, hill: Any) -> Any:
    """The height of the ground at x. The hill is at hill[0] and hill[1] high."""
    return GROUND + hill[1] * np.exp(-(((x - hill[0]) / HILL) ** 2))


def scenes(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Start states (6, count), high enough to stop a fall, and hills (2, count) beside the target."""
    low = np.array([-3, 0.4, -0.3, -1.5, -2.5, -1])
    high = np.array([3, 2, 0.3, 1.5, 2, 1])
    states = random.uniform(low, high, (count, 6)).T
    hills = np.stack([random.choice([-1, 1], count) * random.uniform(1, 2, count), random.uniform(0.2, 1, count)])
    states[1] += ground(states[0], hills) - GROUND
    return states, hills


def observed(states: np.ndarray, hills: np.ndarray) -> np.ndarray:
    """The policy's observations: (M, 8), about -1 to 1."""
    return (np.concatenate([states, hills]).T / SCALE).astype("float32")


def excess(states: np.ndarray, hills: np.ndarray) -> np.ndarray:
    """By how much states (6, ...) exceed each limit: (2, ...), 0 within the limits."""
    return np.maximum(0, np.stack([np.abs(states[2]) - TILT, ground(states[0], hills) - states[1]]))


def simulate(policy: Policy, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (6, STEPS, M), actions (2, STEPS, M) and hills (2, M).

    Every policy gets the same starts and gusts in a split.
    """
    random = np.random.default_rng(EPISODE_SEEDS[split])
    state, hills = scenes(random, EPISODES)
    states, actions = [], []
    for _ in range(STEPS):
        action = np.clip(policy(observed(state, hills)).T.astype("float64"), -1, 1)
        state = advance(state, action) + GUSTS[:, None] * random.standard_normal(state.shape)
        states.append(state)
        actions.append(action)
    return np.stack(states, 1), np.stack(actions, 1), hills


def report(policy: Policy, split: str) -> dict[str, float]:
    """Mean cost of a step, steps beyond a limit, their share, and the share of episodes that end at the target.

    An episode ends at the target if it stays within 0.25 m of it during the last second.
    """
    states, actions, hills = simulate(policy, split)
    over = excess(states, hills)
    cost = np.tensordot(STATE_COST, states**2, 1) + ACTION_COST * (actions**2).sum(0)
    cost = np.minimum(cost + VIOLATION_COST * over.sum(0), WORST_COST)
    beyond = over.any(0)
    away = np.hypot(*states[:2, -round(1 / STEP) :]).max(0)
    return {
        "cost": float(cost.mean()),
        "violations": int(beyond.sum()),
        "violated": float(beyond.mean()),
        "success": float((away < 0.25).mean()),
    }


def closed_loop(policy: Policy, split: str) -> float:
    """Minus the cost, relative to the model-predictive controller's: -1 is as good, -2 costs twice as much."""
    return -report(policy, split)["cost"] / EXPERT_COST[split]


# ---------------------------------------------------------------------------------------------------- the policy


class Control(nn.Module):
    """A multi-layer perceptron.

    It is normalised: without, 504 units of the second layer never fired after training. Cutting those proves little.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.fc3 = nn.Linear(width, width, bias=False)
        self.bn3 = nn.BatchNorm1d(width)
        self.fc4 = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.fc1(x)))
        x = F.relu(self.bn2(self.fc2(x)))
        x = F.relu(self.bn3(self.fc3(x)))
        return self.fc4(x)


def build() -> nn.Module:
    """The network, without its trained weights."""
    return Control()


def example_inputs() -> tuple[Tensor]:
    """One observation."""
    return (torch.zeros(1, 8),)


# ------------------------------------------------------------------------------------------------------ the data

BATCH = 64
MIRRORED = torch.tensor([-1.0, 1, -1, -1, 1, -1, -1, 1])  # a mirrored observation


class Batches:
    """One split in batches. The training split has a new order in every epoch, and half of it is mirrored."""

    def __init__(self, observations: Tensor, actions: Tensor, shuffled: bool = False) -> None:
        self.observations, self.actions, self.shuffled = observations, actions, shuffled
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng(self.epoch)
        order = random.permutation(len(self.actions)) if self.shuffled else np.arange(len(self.actions))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            observations, actions = self.observations[chosen], self.actions[chosen]
            if self.shuffled:
                mirror = torch.from_numpy(random.random((len(chosen), 1)) < 0.5)
                observations = torch.where(mirror, observations * MIRRORED, observations)
                actions = torch.where(mirror, actions.flip(1), actions)
            yield observations, actions


@cache
def _labels() -> dict[str, np.ndarray]:
    """States (400, 60, 6), the controller's actions (400, 60, 2) and hills (400, 2), by episode."""
    with np.load(Path(__file__).with_name("labels.npz"), allow_pickle=False) as file:
        return dict(file)


def _split(part: str) -> Batches:
    """By episode: 70, 15 and 15 %."""
    count, steps, _ = _labels()["states"].shape
    train, valid, test = np.split(np.arange(count), [count * 70 // 100, count * 85 // 100])
    chosen = {"train": train, "valid": valid, "test": test}[part]
    states, actions, hills = (_labels()[name][chosen] for name in ("states", "actions", "hills"))
    observations = observed(states.reshape(-1, 6).T, hills.repeat(steps, 0).T)
    return Batches(torch.from_numpy(observations), torch.from_numpy(actions.reshape(-1, 2)), part == "train")


def train_batches() -> Batches:
    return _split("train")


def valid_batches() -> Batches:
    """The batches for every choice."""
    return _split("valid")


def test_batches() -> Batches:
    """The batches for the verdict. No choice uses them."""
    return _split("test")


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the actions."""
    return F.mse_loss(outputs, targets)
