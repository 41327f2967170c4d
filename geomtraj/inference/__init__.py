"""Statistics over seeds as pure functions of arrays: intervals, tests, rank correlation, regression, two-way tables."""

from geomtraj.inference.decades import KERNEL, per_decade
from geomtraj.inference.factorial import TwoWay, two_way
from geomtraj.inference.interval import CONFIDENCE, Interval, t_interval
from geomtraj.inference.nearest import Match, match_iterates
from geomtraj.inference.rank_correlation import Agreement, RankCorrelation, agreement, kendall, spearman
from geomtraj.inference.ratios import OverSeeds, holm, over_seeds, sign_test
from geomtraj.inference.regression import Explained, Share, explained, share_of
from geomtraj.inference.slopes import MeanOverSeeds, Trend, mean_over_seeds, trend
from geomtraj.inference.speed import fall, nearest_to, steps_to_loss
from geomtraj.inference.verdicts import Verdict, larger, within

__all__ = [
    "CONFIDENCE",
    "KERNEL",
    "Agreement",
    "Explained",
    "Interval",
    "Match",
    "MeanOverSeeds",
    "OverSeeds",
    "RankCorrelation",
    "Share",
    "Trend",
    "TwoWay",
    "Verdict",
    "agreement",
    "explained",
    "fall",
    "holm",
    "kendall",
    "larger",
    "match_iterates",
    "mean_over_seeds",
    "nearest_to",
    "over_seeds",
    "per_decade",
    "share_of",
    "sign_test",
    "spearman",
    "steps_to_loss",
    "t_interval",
    "trend",
    "two_way",
    "within",
]  # fmt: skip
