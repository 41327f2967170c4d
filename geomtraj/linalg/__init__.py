"""Algorithms on symmetric operators; they see nothing but operators/base."""
