"""The objectives of learned methods, over scores `[n, v]` at response positions; all in float32, in nats.

Every function gives one value per token or per example; averaging is the caller's, who says over what.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def jensen_shannon(scores: Float[Tensor, "n v"], target: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2 (CDAS, arXiv 2602.05234); in [0, ln 2], symmetric.

    The mixture is taken in log space, so that no probability underflows into 0·∞.
    """
    p, q = torch.log_softmax(scores.float(), -1), torch.log_softmax(target.float(), -1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1))


def kl(target: Float[Tensor, "n v"], scores: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """KL(target‖scores): the mean over the first one's tokens of how much likelier it finds them."""
    p, q = torch.log_softmax(target.float(), -1), torch.log_softmax(scores.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def cross_entropy(scores: Float[Tensor, "n v"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log p(token)."""
    return -torch.log_softmax(scores.float(), -1).gather(1, tokens[:, None])[:, 0]


def scaled_preference(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    chosen_tokens: Int[Tensor, " b"],
    rejected_tokens: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """The reference-scaled SimPO loss of RePS (arXiv 2505.20809, eq. 4) from summed log-probabilities.

    −log σ(s/|y_w|·log p(y_w) − 1/|y_l|·log p(y_l)), s = max(log p_ref(y_l) − log p_ref(y_w), 1): the less likely the
    wanted answer is without steering, the more it weighs. (The published preference variant of CDAS has the sign of s
    turned round, which makes it 1 nearly always.)
    """
    scale = (reference_rejected - reference_chosen).clamp_min(1)
    return -logsigmoid(scale / chosen_tokens * chosen - rejected / rejected_tokens)
