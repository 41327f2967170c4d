"""Algorithms on symmetric operators; they see nothing but operators/base."""

from geomtraj.linalg.density import SpectralDensity, spectral_density
from geomtraj.linalg.eigen import Eigenpairs, eigsh
from geomtraj.linalg.estimate import Estimate
from geomtraj.linalg.spectrum import Spectrum, spectrum
from geomtraj.linalg.trace import trace

__all__ = ["Eigenpairs", "Estimate", "SpectralDensity", "Spectrum", "eigsh", "spectral_density", "spectrum", "trace"]
