"""DeFT-X (Simon and Jyothi 2025, arXiv 2505.15090): LT-SFT whose support is selected after the moves are denoised.

Of each weight matrix the difference that the full phase made is split by singular values: the low-order part, which has
most of the variance, is kept; of what remains, the high-order part, just the largest entries are. The K weights with
the largest denoised differences are the support.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ltsft.errors import TrainingError
from ltsft.methods.mask import select_magnitude
from ltsft.methods.method import OwnSettings, SupportMethod

if TYPE_CHECKING:
    from ltsft.config import Recipe

ROWS_AT_ONCE = 8192


class DenoisedSettings(OwnSettings):
    """What is kept of the moves."""

    rank: int | None = Field(None, ge=1, description="of the low-order part, in place of `variance`")
    variance: float = Field(0.9, gt=0, le=1, description="share that the low-order part has at least, without a rank")
    high_order: float = Field(0.05, ge=0, le=1, description="share of the high-order part that is kept")


class Denoised(SupportMethod):
    """Full phase, denoising, the K largest denoised differences, rewind, sparse phase."""

    name: ClassVar[str] = "deft_x"
    summary: ClassVar[str] = "the K weights with the largest denoised moves in a full phase, trained from the base"
    settings: ClassVar[type[OwnSettings]] = DenoisedSettings

    @torch.no_grad()
    def select(
        self,
        now: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        k: int,
        *,
        taken: Mapping[str, Tensor],
        recipe: Recipe,
        seed: int,
    ) -> dict[str, Tensor]:
        """Select by denoised differences; `now` is overwritten with them, so that there is no second copy."""
        own = DenoisedSettings.of(recipe)
        for name, p in now.items():
            difference = p - start[name].to(p.device)
            if difference.dim() == 2:
                difference = denoise(difference, variance=own.variance, rank=own.rank, high_order=own.high_order)
            p.copy_(difference)
        nothing = {name: torch.zeros(()).expand(p.shape) for name, p in now.items()}
        return select_magnitude(now, nothing, k, taken=taken)


def denoise(difference: Tensor, *, variance: float, rank: int | None, high_order: float) -> Tensor:
    """Keep the low-order part of a difference, and of its high-order part the largest entries.

    Args:
        difference: of a weight matrix, (rows, columns), float32; left as it is.
        variance: share of the squared singular values that the low-order part has at least, in (0, 1].
        rank: of the low-order part, in place of `variance`.
        high_order: share of the entries of the high-order part that are kept, in [0, 1]; the largest by magnitude.

    Returns:
        The denoised difference, (rows, columns), float32; where an entry of the high-order part is kept, it is the
        difference as it was.
    """
    low = low_order(difference, variance=variance, rank=rank)
    kept = int(high_order * difference.numel())
    if kept:
        indices = select_magnitude({"": difference}, {"": low}, kept)[""].long().to(low.device)
        low.view(-1)[indices] = difference.reshape(-1)[indices]
    return low


def low_order(difference: Tensor, *, variance: float = 1.0, rank: int | None = None) -> Tensor:
    """Give the best approximation of a matrix by one of low rank (Eckart and Young 1936).

    The singular vectors of the shorter side are the eigenvectors of the Gram matrix, which is as small as that side,
    and the matrix is projected on the leading ones: embeddings of 120,000 x 768 never need their long side's vectors.
    The Gram matrix is summed in float64, so that squaring costs no digit of float32.

    Args:
        difference: (rows, columns), float32.
        variance: share of the squared singular values to keep at least; the smallest rank that does is taken.
        rank: the rank itself.

    Returns:
        (rows, columns), float32, on the device of `difference`.

    Raises:
        TrainingError: an entry is not finite.
    """
    if difference.shape[0] < difference.shape[1]:
        return low_order(difference.T, variance=variance, rank=rank).T.contiguous()
    blocks = difference.split(ROWS_AT_ONCE)
    gram = torch.zeros(difference.shape[1], difference.shape[1], dtype=torch.float64, device=difference.device)
    for block in blocks:
        gram.addmm_(block.double().T, block.double())
    if not bool(torch.isfinite(gram).all()):
        raise TrainingError("the full phase ended with weights that are not finite; lower its learning rate")
    squares, vectors = torch.linalg.eigh(gram)  # the smallest first
    squares = squares.clamp(min=0).flip(0)
    if rank is None:
        shares = squares.cumsum(0)
        rank = int((shares < variance * shares[-1]).sum()) + 1 if shares[-1] > 0 else 0
    leading = vectors.flip(1)[:, :rank].float()  # (columns, rank)
    return torch.cat([(block @ leading) @ leading.T for block in blocks])
