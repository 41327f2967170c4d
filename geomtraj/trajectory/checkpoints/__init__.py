"""Checkpoints that other tools wrote, read as the iterates of a trajectory; nothing in them is ever executed."""

from geomtraj.trajectory.checkpoints.copying import copy_into
from geomtraj.trajectory.checkpoints.source import Checkpoints

__all__ = ["Checkpoints", "copy_into"]
