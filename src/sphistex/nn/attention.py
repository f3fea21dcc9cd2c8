"""Cross-attention between the superpixels of a bag and its neighbouring spots (HISTEX, eq. 6–10)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sphistex.nn.layers import FeedForward, Linear


class CrossAttention(nn.Module):
    """Multi-head attention CA(Q, K, V) = concat_h softmax(Q_h K_hᵀ / √d_h) V_h W (eq. 6–7).

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
        self.key = Linear(n_models, d_key, d)
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
            (n_bags, n_key), False where ``context`` is padding.

        Returns
        -------
        (n_models, n_bags, n_query, d).
        """
        q, k, v = (  # (n_models, n_bags, heads, n, d_h)
            project(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for project, x in ((self.query, query), (self.key, context), (self.value, context))
        )
        with sdpa_kernel(SDPBackend.MATH):  # the gradients of the others depend on the order of a GPU's threads
            attended = scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None, :])
        return self.out(attended.transpose(-2, -3).flatten(-2))


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
