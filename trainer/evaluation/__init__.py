"""Scores of a model on problems: validation while a run trains, ``cfpo eval`` of any model."""
