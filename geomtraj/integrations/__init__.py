"""Recording from other people's training loops; each module needs its own package and is imported by name."""
