"""News items, and a BERT-like network for them that `compression.py` compresses.

`ag-news-7600.csv` has a class, a title and a description a line: the test split of AG News (Zhang et al., NeurIPS 2015). A
fifth of the items are the test, and a tenth of the others are held back to choose the best epoch.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEST, VALID = 0.2, 0.1  # shares of the items; of those that are not the test
BATCH = 64
WORDS, TOKENS = 8000, 48  # of the vocabulary; of an item. 0 stands for none, 1 for a rare word, 2 begins an item
FIRST_WORD = 3


@cache
def items(data: Path | None) -> tuple[Tensor, Tensor, int]:
    """All items as tokens (n, 48), their classes (n,), and how many of them are not the test."""
    if data is None:
        raise SystemExit("the network bert needs --data DIR with ag-news-7600.csv")
    with open(data / "ag-news-7600.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [rows[i] for i in order if rows[i][0].isdigit()]
    read = round((1 - TEST) * len(rows))
    words = [re.findall(r"[a-z]+|[0-9]+", f"{title} {text}".lower()) for _, title, text in rows]
    known = Counter(word for item in words[:read] for word in item).most_common(WORDS - FIRST_WORD)
    numbers = {word: i for i, (word, _) in enumerate(known, FIRST_WORD)}
    tokens = torch.zeros(len(rows), TOKENS, dtype=torch.long)
    for row, item in enumerate(words):
        found = [2, *(numbers.get(word, 1) for word in item)][:TOKENS]
        tokens[row, : len(found)] = torch.tensor(found)
    return tokens, torch.tensor([int(row[0]) - 1 for row in rows]), read


def batches(data: Path | None, split: str, count: int | None = None) -> Batches:
    """Batches of "train", "valid" or "test". `count` limits the items of the first two."""
    tokens, classes, read = items(data)
    last = read - round(VALID * read)
    part = {"train": slice(0, last), "valid": slice(last, read), "test": slice(read, None)}[split]
    most = None if split == "test" else count
    return Batches(tokens[part][:most], classes[part][:most], shuffled=split == "train")


class Batches:
    """(tokens, classes), in random order if `shuffled`."""

    def __init__(self, tokens: Tensor, classes: Tensor, shuffled: bool) -> None:
        self.tokens, self.classes, self.shuffled = tokens, classes, shuffled

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.classes)
        for chosen in (torch.randperm(count) if self.shuffled else torch.arange(count)).split(BATCH):
            yield self.tokens[chosen], self.classes[chosen]


class Encoder(nn.Module):
    """One post-norm transformer layer (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.attended, self.done = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = self.attended(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.done(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT at its "mini" size (Turc et al. 2019): width 256, 4 heads, 4 layers; its own vocabulary, no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, 256), nn.Parameter(torch.zeros(1, TOKENS, 256))
        nn.init.normal_(self.words.weight, std=0.02)
        self.norm = nn.LayerNorm(256)
        self.layers = nn.Sequential(*(Encoder(256, 4) for _ in range(4)))
        self.pooler, self.fc = nn.Linear(256, 256), nn.Linear(256, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.norm(self.words(tokens) + self.positions))
        return self.fc(torch.tanh(self.pooler(x[:, 0])))


NETS = {"bert": Bert}


def inputs() -> tuple[Tensor]:
    """One item."""
    return (torch.randint(FIRST_WORD, WORDS, (1, TOKENS), generator=torch.Generator().manual_seed(0)),)
