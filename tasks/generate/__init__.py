"""Generates the teacher's answers."""
