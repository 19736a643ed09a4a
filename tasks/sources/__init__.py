"""Fingerprints of the data of several sources."""
