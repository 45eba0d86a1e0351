"""News topics: the data, the network and the functions of edgeprune.toml."""

from __future__ import annotations

import csv
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # sources.py lies beside the examples
import sources

FILE = "ag-news-7600.csv"
URL = "https://github.com/mhjabreel/CharCnn_Keras"
COMMIT = "555590db4219b1243abb1918effd6a7425a2d75f"
PUBLIC = "data/ag_news_csv/test.csv"

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
WORD = re.compile(r"[a-z0-9]+")
LENGTH = 64  # words read of an item: 97 of 100 items have no more
VOCABULARY = 4096  # ids of words; 0 is any that is not in vocabulary.txt, and none
BATCH = 64
MISSING = 0.3  # share of words that a training item loses

EMBEDDED = 32
WIDTH = 96
HEADS = 6
INNER = 4 * WIDTH
LAYERS = 4
DROPOUT = 0.3


class Attention(nn.Module):
    """Multi-head self-attention with a residual connection, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)  # attention adds nothing at first: training starts from a bag of words
        self.dropout = nn.Dropout(DROPOUT)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, words, width) -> (batch, heads, words, head width), for any number of remaining heads."""
        return x.view(*x.shape[:2], -1, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = self.heads(self.query(y)), self.heads(self.key(y)), self.heads(self.value(y))
        weights = F.softmax(query @ key.transpose(2, 3) * self.scale + bias, -1)
        return x + self.dropout(self.output((weights @ value).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers with a residual connection, normalised before."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.zeros_(self.down.weight)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class EncoderLayer(nn.Module):
    """The two halves of a pre-norm transformer layer (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width, inner)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x, bias))


class News(nn.Module):
    """A transformer encoder; its embedding is a product of two small matrices (Lan et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, EMBEDDED)
        nn.init.normal_(self.words.weight, std=0.1)  # small, so that rare words add little
        self.project = nn.Linear(EMBEDDED, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS, INNER) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.classify = nn.Linear(WIDTH, len(TOPICS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        there = mask.float()
        bias = 1e4 * (there - 1)[:, None, None]  # added to the scores of places without a word; finite in fp16 too
        x = self.dropout(self.project(self.words(ids)) + self.positions)
        for layer in self.layers:
            x = layer(x, bias)
        there = there.unsqueeze(2)
        return self.classify((self.norm(x) * there).sum(1) / there.sum(1))


def build() -> nn.Module:
    """The network, without its trained weights."""
    return News()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One item of 40 words, about the average: the artifact takes one at a time."""
    places = torch.arange(LENGTH, dtype=torch.int32).unsqueeze(0)
    return places + 1, (places < 40).int()


def words(text: str) -> list[str]:
    """The words of a text that the network reads."""
    return WORD.findall(text.lower())[:LENGTH]


def frequent(texts: Sequence[str]) -> list[str]:
    """The most frequent words of some texts: a vocabulary."""
    counts = Counter(word for text in texts for word in words(text))
    return [word for word, _ in counts.most_common(VOCABULARY - 1)]


@functools.cache
def vocabulary() -> dict[str, int]:
    """The id of every word that the network knows."""
    known = Path(__file__).with_name("vocabulary.txt").read_text(encoding="utf-8").split()
    return {word: place for place, word in enumerate(known, start=1)}


def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids of words, and a mask that is 1 at a word and 0 elsewhere: both (texts, LENGTH)."""
    ids, mask = np.zeros((2, len(texts), LENGTH), np.int32)
    for row, text in enumerate(texts):
        found = [vocabulary().get(word, 0) for word in words(text)]
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class Batches:
    """One split in batches. In training, every epoch has a new order and lacks other words."""

    def __init__(self, ids: Tensor, mask: Tensor, labels: Tensor, shuffled: bool = False) -> None:
        self.ids, self.mask, self.labels, self.shuffled = ids, mask, labels, shuffled
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        random = np.random.default_rng(self.epoch)
        order = random.permutation(len(self.labels)) if self.shuffled else np.arange(len(self.labels))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids = self.ids[chosen]
            if self.shuffled:
                ids = ids * torch.from_numpy(random.random(ids.shape) >= MISSING)
            yield (ids, self.mask[chosen]), self.labels[chosen]


@functools.cache
def items() -> dict[str, np.ndarray]:
    """`text`, `topic` and `part` ("train", "valid" or "test") of every item."""
    path = sources.found(FILE)
    folder = sources.downloaded(URL, COMMIT)
    if folder is not None:
        path = folder / PUBLIC
    if path is None:
        with np.load(Path(__file__).with_name("samples.npz"), allow_pickle=False) as samples:
            return dict(samples)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    topics = {" ".join(words(f"{title} {text}")): int(topic) - 1 for topic, title, text in rows}  # each text once
    topic = np.array(list(topics.values()))
    rest, test = train_test_split(np.arange(len(topic)), test_size=1000, stratify=topic, random_state=0)
    _, valid = train_test_split(rest, test_size=1000, stratify=topic[rest], random_state=0)
    part = np.full(len(topic), "train")
    part[valid], part[test] = "valid", "test"
    return {"text": np.array(list(topics)), "topic": topic, "part": part}


def _split(part: str) -> Batches:
    data = items()
    chosen = data["part"] == part
    return Batches(*encode(data["text"][chosen]), torch.from_numpy(data["topic"][chosen]), part == "train")


def train_batches() -> Batches:
    """5,599 items."""
    return _split("train")


def valid_batches() -> Batches:
    """1,000 items for every choice."""
    return _split("valid")


def test_batches() -> Batches:
    """1,000 items for the verdict. No choice uses them."""
    return _split("test")


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of items whose topic is right."""
    return float((outputs.argmax(1) == targets).float().mean())
