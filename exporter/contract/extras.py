"""Which extra of this project brings a package that is missing, read from the project's own metadata."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

__all__ = ["missing_package"]

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+).*;.*\bextra == ['\"](?P<extra>[^'\"]+)['\"]")


def missing_package(module: str, project: str = "kvparity") -> str:
    """One line that says what is missing and how it is had.

    Args:
        module: The module that could not be imported.
        project: Whose extras are looked through.
    """
    package = module.partition(".")[0]
    try:
        found = [_REQUIREMENT.match(line) for line in requires(project) or ()]
    except PackageNotFoundError:
        found = []
    extras = [match["extra"] for match in found if match and match["name"].replace("-", "_").lower() == package.lower()]
    how = f"pip install '{project}[{extras[0]}]'" if extras else f"pip install {package}"
    return f"this needs {package}, which is not installed; {how}"
