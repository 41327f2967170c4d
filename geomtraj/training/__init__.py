"""The plain training loop and the optimizers by name."""

from geomtraj.training import optimizers
from geomtraj.training.learning_rates import learning_rate
from geomtraj.training.loop import spread, train
from geomtraj.training.sweeps import Sweep, SweepRow, sweep, training_loss

__all__ = ["Sweep", "SweepRow", "learning_rate", "optimizers", "spread", "sweep", "train", "training_loss"]
