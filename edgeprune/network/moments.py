"""Least squares for one dense layer, from the second moments of the channels that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2  # of the channels' mean square; generalises best from some hundred to some thousand small images
TINY = 1e-12  # of a ridge, if all channels are zero


@dataclass(frozen=True)
class Moments:
    """Mean products, over positions, of the channels that a layer reads.

    If the layer has a bias to absorb the means, the products are centred.

    Attributes:
        gram: Products of the k channels read now, (k, k).
        cross: Products of those with the channels that the original layer reads, (k, channels).
        mean: Means of the channels read now, (k,).
        mean_before: Means of the original channels, (channels,).
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    mean_before: Tensor

    @staticmethod
    def of(now: Tensor, before: Tensor, bias: bool) -> Moments:
        """The moments of rows (positions, k) read now and rows (positions, channels) read before."""
        means = now.mean(0), before.mean(0)
        if bias:
            now, before = now - means[0], before - means[1]
        found = now.T @ now / len(now), now.T @ before / len(now), *means
        return Moments(*(tensor.double() for tensor in found))

    @staticmethod
    def of_unchanged(rows: Tensor, bias: bool) -> Moments:
        """The moments where a layer reads the same rows (positions, channels) as before."""
        mean = rows.mean(0)
        rows = rows - mean if bias else rows
        products = (rows.T @ rows / len(rows)).double()
        return Moments(products, products, mean.double(), mean.double())

    def of_kept(self, kept: Sequence[int]) -> Moments:
        """The moments where the layer reads only these of its channels."""
        index = torch.tensor(kept, dtype=torch.long)
        return Moments(self.gram[index][:, index], self.cross[index], self.mean[index], self.mean_before)

    @property
    def ridged(self) -> Tensor:
        """`gram` with the ridge on its diagonal: (k, k)."""
        return self.gram + (RIDGE * self.gram.diagonal().mean() + TINY) * torch.eye(
            len(self.gram), dtype=self.gram.dtype
        )

    def refitted(
        self, weight: Tensor, dim: int, bias: Tensor | None, kept: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that best reproduce the original outputs from the channels read now.

        The ridge pulls towards the original weights of the channels `kept`.

        Args:
            weight: The original weight. Its inputs are in dimension `dim`.
            dim: The input dimension of the weight.
            bias: The original bias (outputs,), or None.
            kept: The channels read now, as indices into the original ones (k,).

        Returns:
            The new weight, with k inputs in `dim`, and the new bias.
        """
        target, ridged = self.cross.clone(), self.ridged
        target[torch.arange(len(kept)), torch.tensor(kept, dtype=torch.long)] += (ridged - self.gram).diagonal()
        prediction = torch.linalg.solve(ridged, target)  # original channels from current ones: (k, channels)
        by_input = weight.double().movedim(dim, -1)
        new = (by_input @ prediction.T).movedim(-1, dim).to(weight.dtype)
        if bias is None:
            return new, None
        missing = by_input @ (self.mean_before - self.mean @ prediction)
        return new, bias + missing.reshape(len(missing), -1).sum(1).to(bias.dtype)
