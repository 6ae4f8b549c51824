"""Which tests may run side by side: whole files, and never two that start Ray."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for pytest-xdist: a file shares its fixtures, and Ray's tests would take each other's processors."""
    for item in items:
        starts_ray = any(item.get_closest_marker(name) for name in ("ray", "integration"))
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray else str(item.path)))
