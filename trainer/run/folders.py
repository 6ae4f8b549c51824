"""Folders that a user names: made before the work whose results go there, with a mistake of the user said as one."""

from pathlib import Path

from cfpo_hybrid.errors import ConfigError


def make_folder(folder: Path, name: str) -> None:
    """Makes a folder and those above it; one that is there is fine.

    Args:
        folder: to make.
        name: of the setting or option that says it, for the message.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{name} '{folder}' cannot be made ({error.strerror}); name a folder where you may write, and no file"
        ) from error
