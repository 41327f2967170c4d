"""How products are made: the strategy, what is kept of it, and what fits into memory."""
