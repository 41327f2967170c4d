"""R_med beside the condition number."""
