"""Recording iterates while training runs, and reading them back."""
