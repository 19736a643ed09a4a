"""Initial students: cut from a larger model, pretrained, or random."""
