"""Decoding on local models, and the likelihood of given texts."""
