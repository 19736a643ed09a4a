"""What outputs are worth and where their copies lie: the seam to DVC."""
