"""Filters the teacher's answers."""
