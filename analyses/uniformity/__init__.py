"""Where R_med comes from."""
