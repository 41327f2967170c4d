"""Curvature matrices as symmetric linear operators, known by their products with vectors."""
