"""Trackers: where the metrics of a run go. ``registry.py`` says how one is added."""

from trainer.tracking.registry import Tracker, Trackers, check_trackers, open_trackers

__all__ = ["Tracker", "Trackers", "check_trackers", "open_trackers"]
