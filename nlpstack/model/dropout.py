"""Dropout, on CPUs from sixteen random bits a value: torch draws one value after the other there, and so slowly."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16  # that a share is told in


@torch.library.custom_op("nlpstack::kept", mutates_args=())
def kept(like: Tensor, n_dropped: int, seed: Tensor) -> Tensor:
    """Which values of a tensor stay, bool of its shape, by bits of SFC64; `n_dropped` of 65,536 go, on average.

    A function of its arguments alone, so compiled code may move it, or do it twice.
    """
    bits = np.random.SFC64(int(seed)).random_raw(-(-like.numel() // 4)).view(np.uint16)
    return torch.from_numpy(bits[: like.numel()] >= n_dropped).view(like.shape)


@kept.register_fake
def _(like: Tensor, n_dropped: int, seed: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.bool)


def dropout(x: Tensor, share: float, training: bool = True) -> Tensor:
    """In training zero this share of the values at random and scale the others, so that the mean stays.

    Srivastava et al. 2014, Dropout, section 10.
    """
    if not (training and share):
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    n_dropped = min(round(share * _STEPS), _STEPS - 1)
    seed = torch.randint(2**63 - 1, ())  # from torch's generator, whose state a checkpoint has
    scaled: Tensor = kept(x, n_dropped, seed).to(x.dtype) * (_STEPS / (_STEPS - n_dropped))
    return x * scaled


class Dropout(nn.Dropout):
    """torch's, by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return dropout(x, self.p, self.training)
