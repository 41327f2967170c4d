"""K-FAC: second moments around every weight matrix."""
