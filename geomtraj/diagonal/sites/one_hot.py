"""The exact second derivative of one batch at a group of sites, by one-hot vectors there."""

from __future__ import annotations

import torch

from geomtraj.diagonal.sites.groups import Group
from geomtraj.diagonal.sites.sums import PointwiseSums, Tally


def one_hot_units(group: Group, tally: Tally) -> None:
    """Add the exact diagonal at a site whose positions do not couple: a vector for each unit, at all positions."""
    graph, (number,) = group.graph, group.sites
    sums = PointwiseSums()
    diagonal = torch.zeros(graph.examples, *graph.shape(number), dtype=graph.sites[number].eps.dtype)
    diagonal = diagonal.to(graph.sites[number].eps.device)
    for unit in range(diagonal.shape[-1]):
        v = torch.zeros_like(diagonal)
        v[..., unit] = 1
        (u,) = graph.curvature([number], [v.unsqueeze(1)])
        diagonal[..., unit] = u[:, 0, :, unit]
    sums.add(diagonal.unsqueeze(1))
    sums.tally(group.maps(), tally, exact=True)
