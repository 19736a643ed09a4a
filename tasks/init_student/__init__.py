"""The student's first checkpoint."""
