"""geomtraj."""
