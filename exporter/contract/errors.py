"""The errors a user can cause; each message says what, where, found against expected, and what to do."""

__all__ = [
    "BundleError",
    "EngineUnavailableError",
    "ExportError",
    "KvparityError",
    "NotTakenError",
    "OptionError",
    "PackageError",
    "TraceError",
    "lines_of",
]


class KvparityError(Exception):
    """Base of every expected failure; the command line prints its message on one line and exits with 2."""


class ExportError(KvparityError):
    """A checkpoint cannot be read, is not supported, or a stage of its export failed."""


class BundleError(KvparityError):
    """A bundle on disk is missing, incomplete, modified, or of another schema version."""


class EngineUnavailableError(KvparityError):
    """An engine is not installed, or cannot take this bundle; the message carries the install line."""


class NotTakenError(EngineUnavailableError):
    """An engine is here, but takes bundles of another layout or profile; the message says which."""


class OptionError(KvparityError):
    """No option has that name, or its value is none that it takes; the message names those that are known."""


class TraceError(KvparityError):
    """A recorded trace or a running session does not have the tensors that the contract names."""


class PackageError(KvparityError):
    """A bundle cannot become a folder that another tool loads; the message says what to export instead."""


def lines_of(error: BaseException) -> list[str]:
    """The lines of an exception's message that say anything; its type's name where none does."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
