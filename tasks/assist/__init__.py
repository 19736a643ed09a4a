"""Trains phases whose models are teachers of later phases."""
