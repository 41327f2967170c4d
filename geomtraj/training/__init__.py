"""The plain training loop and the optimizers by name."""

from geomtraj.training import optimizers
from geomtraj.training.learning_rates import learning_rate
from geomtraj.training.loop import train
from geomtraj.training.sweeps import Sweep, SweepRow, sweep

__all__ = ["Sweep", "SweepRow", "learning_rate", "optimizers", "sweep", "train"]
