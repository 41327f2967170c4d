"""How parameters enter the loss of each example: taps, per-example VJP maps, shared entries, the output Hessian."""
