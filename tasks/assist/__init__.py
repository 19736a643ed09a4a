"""Phases whose models teach later ones."""
