"""Chooses the dev rows on which phases are scored while they train."""
