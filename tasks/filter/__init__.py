"""Keep or drop the teacher's answers, with a reason."""
