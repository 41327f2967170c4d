"""Recording iterates while training runs, and reading them back."""

from geomtraj.trajectory.files import read_json, write_json
from geomtraj.trajectory.integrity import Verification, repair, verify
from geomtraj.trajectory.manifest import git_commit
from geomtraj.trajectory.recorder import Recorder
from geomtraj.trajectory.schedules import Schedule, at, either, every, log_spaced
from geomtraj.trajectory.trajectory import Iterate, Trajectory

__all__ = [
    "Iterate",
    "Recorder",
    "Schedule",
    "Trajectory",
    "Verification",
    "at",
    "either",
    "every",
    "git_commit",
    "log_spaced",
    "read_json",
    "repair",
    "verify",
    "write_json",
]
