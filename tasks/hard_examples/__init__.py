"""What the next round should teach: the prompts on which the student is furthest off."""
