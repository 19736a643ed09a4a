"""Are the models what the round needs?"""
