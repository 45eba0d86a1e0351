# %% [markdown]
# # Quickstart: from a model object to a verified, faster network
#
# A small network for handwritten digits is trained, pruned, trained again in a loop of our own, and verified on this machine.
# All of it takes about a minute. Run this file with `python quickstart.py` in this folder, or open it as a notebook:
# VS Code and Jupyter with jupytext show each `# %%` as a cell.

# %%
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune as ep

# %% [markdown]
# ## The data: 1,797 images of 8×8 pixels

# %%
with np.load("digits/digits.npz") as data:
    images = torch.from_numpy(data["images"].astype("float32") / 16)[:, None]
    labels = torch.from_numpy(data["labels"].astype("int64"))
images = F.interpolate(images, scale_factor=2)  # 16×16


def loader(first: int, last: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of the images from `first` to `last`. The order follows from a seed, so runs can be reused."""
    chosen = TensorDataset(images[first:last], labels[first:last])
    return DataLoader(chosen, 64, shuffle, generator=torch.Generator().manual_seed(0))


train_loader, valid_loader, test_loader = loader(0, 1077, shuffle=True), loader(1077, 1437), loader(1437, 1797)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of images whose digit is right."""
    return float((outputs.argmax(1) == targets).float().mean())


# %% [markdown]
# ## The model, trained as usual


# %%
class Net(nn.Module):
    """Three convolutions with batch norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def train(model: nn.Module, epochs: int, rate: float) -> None:
    """Our own training loop. Any other one would do."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(train_loader))
    model.train()
    for _ in range(epochs):
        for inputs, targets in train_loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


torch.manual_seed(0)
model = Net()
train(model, epochs=6, rate=3e-3)

# %% [markdown]
# ## The project
#
# Without `metric` and `loss` they are the top-1 accuracy and cross-entropy. The model is copied, and stays unchanged.

# %%
project = ep.Project(
    model,
    torch.zeros(1, 1, 16, 16),  # the artifact takes one image at a time
    train=train_loader,
    valid=valid_loader,  # for every choice
    test=test_loader,  # for the verdict
    metric=accuracy,
    max_metric_drop=0.02,
)

# %% [markdown]
# ## Prune to 60 % of the latency
#
# edgeprune measures variants of the network on the target, and keeps the channels whose loss costs most within the budget.

# %%
pruned = project.prune(target="local", budget="60%")
pruned

# %% [markdown]
# ## Train in our own loop
#
# `pruned.model` is an ordinary module. `project.compress` would train it for us instead.

# %%
train(pruned.model, epochs=4, rate=2e-3)

# %% [markdown]
# ## Compile and verify
#
# The artifact is compared with the original network on the device: outputs, metric, latency, size and memory.

# %%
result = project.finish(pruned)
result

# %%
before, after = result.baseline, result.pruned
print(f"{result.status}: {result.artifact}")
print(f"latency  {before.p50_ms:.3f} ms before, {after.p50_ms:.3f} ms after")
print(f"accuracy {before.metric:.4f} before, {after.metric:.4f} after")
print(f"weights  {before.parameters:,} before, {sum(p.numel() for p in result.model.parameters()):,} after")
