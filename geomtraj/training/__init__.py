"""The plain training loop and the optimizers by name."""
