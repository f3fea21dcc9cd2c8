"""Cross-attention between the superpixels of a bag and its neighbouring spots (HISTEX, eq. 6–10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sphistex.nn.layers import FeedForward, Linear

# Score of what is hidden: its share is nothing beside what is not.
_HIDDEN = -1e4


class CrossAttention(nn.Module):
    """Multi-head attention CA(Q, K, V) = concat_h softmax(Q_h K_hᵀ / √d_h) V_h W (eq. 6–7).

    A bag has many superpixels and few neighbouring spots, and every product here is linear: what would be projected
    for each superpixel, (x W_q) (g W_k)ᵀ, is projected for each spot instead, x (g W_k W_qᵀ)ᵀ. With 7 spots and 4
    heads that is a fifth of the operations.

    Parameters
    ----------
    n_models
        Models held at once (leading dimension of every input).
    d_query, d_key
        Dimensions of the queries, and of the keys and values.
    d
        Embedding dimension; each of ``heads`` heads has d_h = d / heads.
    """

    def __init__(self, n_models: int, d_query: int, d_key: int, d: int, heads: int) -> None:
        super().__init__()
        if d % heads:
            raise ValueError(f"d={d} cannot be divided into heads={heads}: choose d as a multiple of heads.")
        self.heads = heads
        self.query = Linear(n_models, d_query, d)
        # a bias of the keys would add the same to all scores of a query
        self.key = Linear(n_models, d_key, d, bias=False)
        self.value = Linear(n_models, d_key, d)
        self.out = Linear(n_models, d, d)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from ``query`` to ``context``, which gives both keys and values.

        Parameters
        ----------
        query
            (n_models or 1, n_bags, n_query, d_query).
        context
            (n_models or 1, n_bags, n_key, d_key).
        mask
            (n_bags, n_key), or one for each model, False where ``context`` is padding. Where a bag has nothing to
            attend to, also without any ``context`` (n_key = 0), the output is the bias of the last layer.

        Returns
        -------
        (n_models, n_bags, n_query, d).
        """
        if context.shape[-2] <= query.shape[-2]:
            return self._from_few(query, context, mask)
        return self._of_few(query, context, mask)

    def _from_few(self, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from many to few: the projection of the queries goes to the keys, that of the output to the values."""
        key, value = (project(context).unflatten(-1, (self.heads, -1)) for project in (self.key, self.value))
        scale = key.shape[-1] ** -0.5
        keys = torch.einsum("mbkhe,mqhe->mbhkq", key * scale, self._by_head(self.query.weight))
        offset = torch.einsum("mbkhe,mohe->mbhko", key * scale, self._by_head(self.query.bias))
        values = torch.einsum("mbkhe,mheo->mbhko", value, self.out.weight.unflatten(-2, (self.heads, -1)))
        if mask is not None:  # what is hidden is nothing, also where all is hidden and has the same score
            shown = mask[..., None, :, None]
            offset, values = offset.masked_fill(~shown, _HIDDEN), values * shown
        # keys before queries: the softmax over a handful of keys then runs along many queries at once
        score = (keys.flatten(2, 3) @ query.transpose(-1, -2)).unflatten(2, keys.shape[2:4]) + offset
        out = score.softmax(-2).flatten(2, 3).transpose(-1, -2) @ values.flatten(2, 3)
        # the bias in its own precision: its gradient, summed in half of it, would depend on how many models train
        return out + self.out.bias[:, None]

    def _of_few(self, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from few to many: keys are projected by the queries, and values when they have been averaged."""
        asked = self.query(query).unflatten(-1, (self.heads, -1))
        queries = torch.einsum("mbqhe,mkhe->mbqhk", asked, self._by_head(self.key.weight))
        score = torch.einsum("mbqhd,mbkd->mbqhk", queries, context) * asked.shape[-1] ** -0.5
        share = self._share(score, None if mask is None else mask[..., None, None, :])
        seen = torch.einsum("mbqhk,mbkd->mbqhd", share, context)
        values = torch.einsum("mbqhd,mdhe->mbqhe", seen, self._by_head(self.value.weight))
        return self.out((values + self._by_head(self.value.bias)[:, None]).flatten(-2))

    def _by_head(self, weight: Tensor) -> Tensor:
        """(n_models, d_in, d) → (n_models, d_in, heads, d_h)."""
        return weight.unflatten(-1, (self.heads, -1))

    def _share(self, score: Tensor, mask: Tensor | None) -> Tensor:
        """How much of each key a query sees, (n_models, n_bags, n_query, heads, n_key)."""
        if mask is None:
            return score.softmax(-1)
        # finite, and hidden once more, so that a bag in which all is hidden sees nothing instead of NaN
        return score.masked_fill(~mask, _HIDDEN).softmax(-1) * mask


class BCA(nn.Module):
    """One layer of bidirectional cross-attention BCA(G, H) (eq. 8–9).

    Z1 = CA(G, H, H): the neighbouring spots look at the superpixels; Z2 = CA(H, G, G): the superpixels look at the
    spots; Z3 = CA(Z2, Z1, Z1): what the superpixels found looks at what the spots found; the result is FFN(Z3) + Z3.

    In these equations the values of Z3 are superpixels: what the spots express decides only how superpixels are
    weighted, and never reaches the output. With ``residual``, Z3 = CA(Z2, Z1, Z1) + Z2 lets it through.
    """

    def __init__(
        self,
        n_models: int,
        d_spot: int,
        d_superpixel: int,
        d: int,
        heads: int,
        dropout: float = 0.0,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.spots_to_superpixels = CrossAttention(n_models, d_spot, d_superpixel, d, heads)
        self.superpixels_to_spots = CrossAttention(n_models, d_superpixel, d_spot, d, heads)
        self.fuse = CrossAttention(n_models, d, d, d, heads)
        self.ffn = FeedForward(n_models, (d, d, d), dropout=dropout)

    def forward(
        self,
        spots: Tensor,
        superpixels: Tensor,
        spot_mask: Tensor | None = None,
        superpixel_mask: Tensor | None = None,
    ) -> Tensor:
        """Fuse G (n_models or 1, n_bags, n2, d_spot) and H (..., n1, d_superpixel) → (n_models, n_bags, n1, d)."""
        z1 = self.spots_to_superpixels(spots, superpixels, superpixel_mask)
        z2 = self.superpixels_to_spots(superpixels, spots, spot_mask)
        z3 = self.fuse(z2, z1, spot_mask)
        if self.residual:
            z3 = z3 + z2
        return self.ffn(z3) + z3
