"""Pairing trajectories fairly, and statistics over seeds."""
