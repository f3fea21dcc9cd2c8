"""A graph convolutional network over neighbouring superpixels, learnt from the means over spots.

The principle of scstGCN (Xue et al. 2025, Briefings in Bioinformatics 26(1), bbae630): a superpixel's expression is
read from its features and its place and from those around it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from sphistex.bench.methods._tissue import components, ranks
from sphistex.bench.problem import Problem
from sphistex.nn.mil import ScaledSquares

EPOCHS = 80
LEARNING_RATE = 2e-3
WIDTH = 128
# Components of the features that are read; all superpixels' are in memory at once.
N_COMPONENTS = 64


class GraphNetwork(nn.Module):
    """Two graph convolutions and a linear layer."""

    def __init__(self, d_in: int, width: int, n_genes: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(d_in, width), nn.Linear(width, width), nn.Linear(width, n_genes)

    def forward(self, links: Tensor, nodes: Tensor) -> Tensor:
        """Nodes (n, d_in) and their links, sparse (n, n) → expression before the link function (n, n_genes)."""
        hidden = nn.functional.gelu(links @ self.first(nodes))
        return self.head(nn.functional.gelu(links @ self.second(hidden)))


def graph(problem: Problem) -> NDArray[np.float32]:
    """Train on the superpixels of the spots, each linked within its own, and predict with those of the tissue linked.

    Spots lie apart, so that neighbours among their superpixels are of the same spot.
    """
    nodes = torch.from_numpy(_nodes(problem)).to(problem.device)
    measured = np.asarray(problem.bags.weights.sum(0)).reshape(problem.mask.shape) > 0
    weights = problem.bags.weights[:, measured.ravel()]
    counts, areas = torch.from_numpy(problem.spots.counts), torch.from_numpy(np.asarray(weights.sum(1), np.float32))
    objective = ScaledSquares(counts, areas).to(problem.device)
    network = _train(
        _links(measured).to(problem.device),
        nodes[torch.from_numpy(ranks(problem.mask)[measured])],
        _row_means(weights).to(problem.device),
        counts.to(problem.device),
        objective,
        problem.seed,
    )
    with torch.no_grad():
        return objective.rate(network(_links(problem.mask).to(problem.device), nodes)).cpu().numpy()


def _train(
    links: Tensor, nodes: Tensor, spots: Tensor, counts: Tensor, objective: ScaledSquares, seed: int
) -> GraphNetwork:
    """Fit the means over the spots, sparse (n_spots, n_nodes), to the spots' scaled counts."""
    with torch.random.fork_rng([nodes.device] if nodes.device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = GraphNetwork(nodes.shape[1], WIDTH, counts.shape[1]).to(nodes.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    scaled = (counts - objective.low) / objective.span
    for _ in range(EPOCHS):
        loss = nn.functional.mse_loss(spots @ objective.scaled(network(links, nodes)), scaled)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def _nodes(problem: Problem) -> NDArray[np.float32]:
    """Features and place of the tissue's superpixels, (n_superpixels, d)."""
    place = problem.places_um - problem.places_um.mean(0)
    return np.hstack([components(problem, N_COMPONENTS), place / place.std(0).max()]).astype(np.float32)


def _links(mask: NDArray[np.bool_]) -> Tensor:
    """Mean over a superpixel of ``mask`` and those of the eight around it that are inside too, sparse (n, n)."""
    rank, n = ranks(mask), int(mask.sum())
    links = sparse.identity(n, format="csr")
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        here = slice(0, mask.shape[0] - down), slice(max(-right, 0), mask.shape[1] - max(right, 0))
        there = slice(down, mask.shape[0]), slice(max(right, 0), mask.shape[1] + min(right, 0))
        both = mask[here] & mask[there]
        link = sparse.coo_matrix((np.ones(both.sum()), (rank[here][both], rank[there][both])), (n, n))
        links = links + link + link.T
    return _row_means(links)


def _row_means(weights: sparse.spmatrix) -> Tensor:
    """Weights with rows that add up to 1."""
    means = sparse.coo_matrix(sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights)
    index = torch.from_numpy(np.stack([means.row, means.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(means.data.astype(np.float32)), means.shape, check_invariants=True
    ).coalesce()
