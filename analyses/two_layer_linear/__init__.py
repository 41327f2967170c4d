"""The theorem on the two-layer linear network, put to the test."""
