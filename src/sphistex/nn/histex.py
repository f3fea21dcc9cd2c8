"""The HISTEX network: bidirectional cross-attention fuses spots and superpixels, a head reads expression from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sphistex.nn.attention import BCA
from sphistex.nn.layers import Dropout, FeedForward, Linear


class HISTEX(nn.Module):
    """``n_models`` HISTEX networks at once (eq. 6–10).

    L_j = [BCA(G_j, BCA(G_j, H_j)), H_j] for every bag j, and FFN(L_j) is the expression of its superpixels before the
    link function.

    Parameters
    ----------
    n_models
        Models held at once.
    d_features
        Dimension of the superpixel features H.
    d_spots
        Dimension of the neighbouring spots' tokens G.
    n_genes
        Number of outputs.
    embed
        Width of a layer through which the features first go, after which H has this dimension; None takes them as
        they are, as in the paper.
    d, heads
        Embedding dimension of the attention and its number of heads.
    hidden
        Widths of the head's hidden layers.
    layers
        Number of BCA layers; 0 leaves the image alone.
    residual
        Whether what the spots express is added to what the BCA makes of it; without, as published, it only weighs
        superpixels.
    activation
        Between the layers of the head; None leaves them linear.
    dropout
        After the embedding, and inside the head and the BCA's FFN.
    """

    def __init__(
        self,
        n_models: int,
        d_features: int,
        d_spots: int,
        n_genes: int,
        *,
        embed: int | None = None,
        d: int = 512,
        heads: int = 8,
        layers: int = 2,
        residual: bool = False,
        hidden: tuple[int, ...] = (512,),
        activation: type[nn.Module] | None = nn.GELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential()
        if embed is not None:
            self.embed = nn.Sequential(Linear(n_models, d_features, embed), nn.GELU(), Dropout(dropout))
            d_features = embed
        self.bca = nn.ModuleList(
            BCA(n_models, d_spots, d if i else d_features, d, heads, dropout, residual=residual) for i in range(layers)
        )
        d_fused = d_features + (d if layers else 0)
        self.head = FeedForward(n_models, (d_fused, *hidden, n_genes), activation=activation, dropout=dropout)

    def attend(
        self,
        spots: Tensor,
        superpixels: Tensor,
        spot_mask: Tensor | None = None,
        superpixel_mask: Tensor | None = None,
    ) -> Tensor:
        """BCA(G, BCA(G, H)) (eq. 10).

        Parameters
        ----------
        spots
            G, (n_models or 1, n_bags, n2, d_spots).
        superpixels
            H, the embedded features, (n_models or 1, n_bags, n1, d_features).
        spot_mask, superpixel_mask
            (n_bags, n2) and (n_bags, n1), False at padding.

        Returns
        -------
        (n_models, n_bags, n1, d); d is 0 where there are no BCA layers.
        """
        if not len(self.bca):
            return superpixels[..., :0]
        fused = superpixels
        for layer in self.bca:
            fused = layer(spots, fused, spot_mask, superpixel_mask)
        return fused

    def read(self, attended: Tensor, superpixels: Tensor) -> Tensor:
        """FFN of L = [attended, H]: expression before the link, (n_models, ..., n_genes).

        ``attended`` is (n_models or 1, ..., d) and ``superpixels`` (n_models or 1, ..., d_features).
        """
        n_models = max(len(attended), len(superpixels))
        fused = torch.cat([x.expand(n_models, *x.shape[1:]) for x in (attended, superpixels)], dim=-1)
        return self.head(fused)

    def forward(
        self,
        spots: Tensor,
        superpixels: Tensor,
        spot_mask: Tensor | None = None,
        superpixel_mask: Tensor | None = None,
    ) -> Tensor:
        """Expression before the link, (n_models, n_bags, n1, n_genes), from features not embedded yet.

        Arguments as in :meth:`attend`.
        """
        superpixels = self.embed(superpixels)
        return self.read(self.attend(spots, superpixels, spot_mask, superpixel_mask), superpixels)
