"""Rows of text: their kinds and files, their token ids, what they may not give away."""
