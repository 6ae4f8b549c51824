"""The driver: from a recipe to a trained model. ``step.py`` is one training step; docs/way_of_a_batch.md follows a batch."""
