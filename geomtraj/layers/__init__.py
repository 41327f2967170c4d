"""Where parameters enter a forward pass, and the derivatives of the loss by perturbations there."""
