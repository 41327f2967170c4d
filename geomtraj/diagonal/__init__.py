"""The Hessian diagonal and its error bars."""
