"""One small file per statistic, and their registry."""
