"""For all tests: a slow machine is no reason for a property test to fail."""

from hypothesis import settings

settings.register_profile("any_pace", deadline=None)
settings.load_profile("any_pace")
