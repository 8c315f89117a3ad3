"""Enforcers that lie on purpose, for labctl's test of itself. None of them is an arm that a user can ask for."""
