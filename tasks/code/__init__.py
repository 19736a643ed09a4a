"""Fingerprints of the code of each stage."""
