"""Spoken digits: the data, the network and the functions of edgeprune.toml and speakers.toml."""

from __future__ import annotations

import math
import sys
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # sources.py is shared by the examples
import sources

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset"
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"

RATE = 8000  # samples a second
LENGTH = 8000  # samples of the network's input, one second
WINDOW, HOP = 200, 80  # 25 ms every 10 ms
FFT = 256  # points of the DFT, zeros after the window
BANDS = 32  # of the mel filterbank
FLOOR = 1e-4  # of a band's power, about 74 dB below a full-scale tone

BATCH = 64
SHIFT = 800  # the largest shift of a training recording, in samples
GAIN = 12.0  # the largest gain either way, in decibels
NOISE = -70.0, -40.0  # its white noise, decibels relative to full scale

# -------------------------------------------------------------------------------------------------------- network


def dft_kernels() -> tuple[Tensor, Tensor]:
    """Cosines and sines under a Hann window, (bins, 1, window) each. The constant bin is left out."""
    time = torch.arange(WINDOW, dtype=torch.float64)
    bins = torch.arange(1, FFT // 2 + 1, dtype=torch.float64)
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    angle = 2 * math.pi / FFT * bins[:, None] * time
    return (window * angle.cos()).float()[:, None], (window * angle.sin()).float()[:, None]


def mel_filterbank(lowest: float = 60.0) -> Tensor:
    """Overlapping triangles (bands, bins), equally wide in mel: 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    bottom, top = (2595 * math.log10(1 + f / 700) for f in (lowest, RATE / 2))
    corners = 700 * (10 ** (torch.linspace(bottom, top, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    frequency = torch.arange(1, FFT // 2 + 1, dtype=torch.float64) * RATE / FFT
    left, middle, right = (corners[i : BANDS + i, None] for i in range(3))
    rising, falling = (frequency - left) / (middle - left), (right - frequency) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


class LogMel(nn.Module):
    """Samples (n, 1, length) -> log-mel spectrogram (n, 1, bands, frames), without the overall level.

    The DFT is a strided convolution, so any runtime can compute it. Its kernels are constant buffers outside the state
    dict. They are not trained and not cut.
    """

    def __init__(self) -> None:
        super().__init__()
        cosine, sine = dft_kernels()
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.register_buffer("mel", mel_filterbank()[:, :, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = F.conv1d(x, self.cosine, stride=HOP), F.conv1d(x, self.sine, stride=HOP)
        level = F.conv1d(real * real + imaginary * imaginary, self.mel).clamp(min=FLOOR).log()
        return (level - level.mean((1, 2), keepdim=True))[:, None]


class Separable(nn.Module):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Speech(nn.Module):
    """A depthwise separable network over mel × time, as for keyword spotting (DS-CNN, Zhang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.logmel = LogMel()
        self.stem = nn.Conv2d(1, 64, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(
            Separable(64, 128),
            Separable(128, 128),
            Separable(128, 192, stride=2),
            Separable(192, 192),
            Separable(192, 192),
            Separable(192, 192),
        )
        self.fc = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(self.logmel(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def build() -> nn.Module:
    """The network, without its trained weights."""
    return Speech()


def example_inputs() -> tuple[Tensor]:
    """One second of noise: the artifact takes one second at a time."""
    return (0.1 * torch.randn(1, 1, LENGTH, generator=torch.Generator().manual_seed(0)),)


# ----------------------------------------------------------------------------------------------------------- data


class Recordings(NamedTuple):
    """Recordings, each in the middle of `LENGTH` samples."""

    pcm: Tensor  # (n, 1, LENGTH), int16
    label: Tensor  # (n,), int64
    speaker: np.ndarray  # names
    take: np.ndarray  # numbers, from 0 for every digit and speaker


@cache
def recordings() -> Recordings:
    """All recordings: of the folder, the public source, or the built-in samples."""
    file, checkout = sources.found("spoken-digits.npz"), sources.downloaded(URL, COMMIT)
    if checkout is not None:
        return _read_waves(checkout / "recordings")
    with np.load(file or Path(__file__).with_name("samples.npz"), allow_pickle=False) as data:
        pcm = _expanded(data["mulaw"]) if file is None else data["pcm"]
        pieces = np.split(pcm, data["offset"][1:-1])
        return _recordings(pieces, data["label"], data["speaker"], data["take"])


def _read_waves(folder: Path) -> Recordings:
    pieces, labels, speakers, takes = [], [], [], []
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        with wave.open(str(path)) as file:
            pieces.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
        labels.append(int(digit))
        speakers.append(speaker)
        takes.append(int(take))
    return _recordings(pieces, np.array(labels), np.array(speakers), np.array(takes))


def _expanded(code: np.ndarray) -> np.ndarray:
    """16-bit samples of 7-bit ones, by the µ-law (µ = 255)."""
    compressed = code.astype(np.float64) / 63
    return np.round(np.sign(compressed) * (256 ** np.abs(compressed) - 1) / 255 * 32767).astype(np.int16)


def _recordings(pieces: list[np.ndarray], label: np.ndarray, speaker: np.ndarray, take: np.ndarray) -> Recordings:
    pcm = np.stack([_centred(piece) for piece in pieces])[:, None]
    return Recordings(torch.from_numpy(pcm), torch.from_numpy(label.astype(np.int64)), speaker, take)


def _centred(piece: np.ndarray) -> np.ndarray:
    """The middle of a recording that is too long. A short one gets zeros on both sides."""
    start = max(0, len(piece) - LENGTH) // 2
    piece = piece[start : start + LENGTH]
    before = (LENGTH - len(piece)) // 2
    return np.pad(piece, (before, LENGTH - len(piece) - before))


class Batches:
    """One split in batches of samples in -1..1. If `augmented`, the epoch determines the order and the changes."""

    def __init__(self, pcm: Tensor, labels: Tensor, augmented: bool) -> None:
        self.pcm, self.labels, self.augmented = pcm, labels, augmented
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order and the changes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(self.epoch)
        count = len(self.labels)
        order = torch.randperm(count, generator=random) if self.augmented else torch.arange(count)
        for chosen in order.split(BATCH):
            x = self.pcm[chosen].float() / 32768
            yield (_augmented(x, random) if self.augmented else x), self.labels[chosen]


def _augmented(x: Tensor, random: torch.Generator) -> Tensor:
    """Each recording, shifted, with another gain, and with noise."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), 1, 1, generator=random)

    start = torch.randint(0, 2 * SHIFT + 1, (len(x), 1, 1), generator=random)
    shifted = F.pad(x, (SHIFT, SHIFT)).gather(2, start + torch.arange(x.shape[2]))
    noise = 10 ** (uniform(*NOISE) / 20) * torch.randn(x.shape, generator=random)
    return (shifted * 10 ** (uniform(-GAIN, GAIN) / 20) + noise).clamp(-1, 1)


def _split(chosen: np.ndarray, augmented: bool = False) -> Batches:
    held = torch.from_numpy(chosen)
    return Batches(recordings().pcm[held], recordings().label[held], augmented)


# By take, the dataset's own split: the same speakers everywhere, and no recording twice.


def train_batches() -> Batches:
    """2,400 recordings: takes 10 to 49 of every digit by every speaker."""
    return _split(recordings().take >= 10, augmented=True)


def valid_batches() -> Batches:
    """300 recordings, takes 5 to 9, for every choice."""
    take = recordings().take
    return _split((take >= 5) & (take < 10))


def test_batches() -> Batches:
    """300 recordings, takes 0 to 4 (the dataset's test set), for the verdict. No choice uses them."""
    return _split(recordings().take < 5)


# By speaker: the accuracy for an unknown voice.
VALID_SPEAKER, TEST_SPEAKER = "theo", "yweweler"  # the last two of the alphabet


def train_speakers() -> Batches:
    """2,000 recordings by four speakers."""
    return _split(~np.isin(recordings().speaker, [VALID_SPEAKER, TEST_SPEAKER]), augmented=True)


def valid_speakers() -> Batches:
    """500 recordings by a fifth speaker."""
    return _split(recordings().speaker == VALID_SPEAKER)


def test_speakers() -> Batches:
    """500 recordings by a sixth speaker."""
    return _split(recordings().speaker == TEST_SPEAKER)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of recordings whose digit is right."""
    return float((outputs.argmax(1) == targets).float().mean())
