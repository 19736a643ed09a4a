"""Stores the teacher's token distributions."""
