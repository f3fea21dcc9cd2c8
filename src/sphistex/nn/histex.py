"""The HISTEX network: bidirectional cross-attention fuses spots and superpixels, a head reads expression from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sphistex.nn.attention import BCA
from sphistex.nn.layers import Dropout, FeedForward, Linear


class Embedding(nn.Module):
    """H from features of the superpixel and of its surroundings.

    Half of H is made from the superpixel itself, and the other half from its surroundings, a part of it from each:
    this is more accurate than all of H from everything, and takes a third of the operations.

    Parameters
    ----------
    n_models, d_features, contexts
        As in :class:`HISTEX`.
    width
        Dimension of H; None puts the features of all contexts side by side.
    dropout
        After it.
    """

    def __init__(self, n_models: int, d_features: int, contexts: int, width: int | None, dropout: float) -> None:
        super().__init__()
        self.width = contexts * d_features if width is None else width
        self.parts = nn.ModuleList()
        if width is not None:
            others = [width // (2 * (contexts - 1))] * (contexts - 1) if contexts > 1 else []
            widths = (width - sum(others), *others)
            self.parts.extend(Linear(n_models, d_features, part) for part in widths)
        self.after = nn.Sequential(nn.GELU(), Dropout(dropout)) if width is not None else nn.Sequential()

    def forward(self, features: Tensor) -> Tensor:
        """(contexts, n_models or 1, ..., d_features) → (n_models or 1, ..., width)."""
        if not len(self.parts):
            return torch.cat(list(features), dim=-1)
        return self.after(torch.cat([part(x) for part, x in zip(self.parts, features, strict=True)], dim=-1))


class HISTEX(nn.Module):
    """``n_models`` HISTEX networks at once (eq. 6–10).

    L_j = [BCA(G_j, BCA(G_j, H_j)), H_j] for every bag j, and FFN(L_j) is the expression of its superpixels before the
    link function.

    Parameters
    ----------
    n_models
        Models held at once.
    d_features
        Dimension of the superpixel features.
    d_spots
        Dimension of the neighbouring spots' tokens G.
    n_genes
        Number of outputs.
    contexts
        Surroundings of which there are features, the superpixel itself first.
    embed
        Dimension of H, to which the features are reduced first; None takes them as they are, as in the paper.
    d, heads
        Embedding dimension of the attention and its number of heads.
    hidden
        Widths of the head's hidden layers; the last one's is that of the latent map that all genes are read from.
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
        contexts: int = 1,
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
        self.embed = Embedding(n_models, d_features, contexts, embed, dropout)
        d_features = self.embed.width
        self.bca = nn.ModuleList(
            BCA(n_models, d_spots, d if i else d_features, d, heads, dropout, residual=residual) for i in range(layers)
        )
        d_fused = d_features + (d if layers else 0)
        self.head = FeedForward(n_models, (d_fused, *hidden), activation=activation, dropout=dropout, last=False)
        self.loadings = Linear(n_models, (d_fused, *hidden)[-1], n_genes)

    @property
    def n_models(self) -> int:
        """Models held at once."""
        return len(self.loadings.weight)

    def take(self, models: Sequence[int]) -> HISTEX:
        """A copy of some of the models."""
        part = copy.deepcopy(self)
        for parameter in part.parameters():
            parameter.data = parameter.data[list(models)]
        return part

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
            (n_bags, n2) and (n_bags, n1), or one for each model, False at padding.

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
        """All of FFN but its last layer, ``loadings``, on L = [attended, H]: the latent map, (n_models, ..., d_latent).

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
        """Latent map (n_models, n_bags, n1, d_latent), of which ``loadings`` is expression before the link.

        ``superpixels`` are features (contexts, n_models or 1, n_bags, n1, d_features); the others as in :meth:`attend`.
        """
        superpixels = self.embed(superpixels)
        return self.read(self.attend(spots, superpixels, spot_mask, superpixel_mask), superpixels)
