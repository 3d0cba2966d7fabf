"""Optional packages, imported when something that needs them is called."""

import importlib
from types import ModuleType


def load(name: str, purpose: str) -> ModuleType:
    """The module with that name.

    Raises:
      ImportError: it is not installed; the message says what needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{purpose} needs {package}, which is not installed: pip install {package}.") from error
