"""The student in the forms in which it is used, each shown to answer as the original does."""
