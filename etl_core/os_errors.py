"""Failures of the machine that are no defect: a full disk, a limit of open files, a missing right, no memory."""

from __future__ import annotations

import errno

from etl_core.errors import EtlError, PermanentError, TransientError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FILE = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG, errno.EFBIG})


def explain_os_error(error: BaseException) -> EtlError | None:
    """The error to show instead; None if `error` is none of these. Only the file's name is repeated, never a text."""
    if isinstance(error, MemoryError):
        return TransientError("this machine has no memory left", hint="lower batch.max_bytes, or give it more memory")
    if not isinstance(error, OSError):
        return None
    name = f": {error.filename}" if error.filename else ""
    # Arrow gives no number, but the system's sentence.
    if error.errno in _FULL or "No space left on device" in str(error):
        return TransientError(f"a disk is full{name}", hint="free space on it, or set TMPDIR to a larger one")
    if error.errno in _FILES:
        return TransientError("too many files are open", hint="raise the limit of open files (ulimit -n)")
    if error.errno in _RIGHTS and error.filename:
        return PermanentError(f"this user may not use a file{name}", hint="give it the right to file and directory")
    if error.errno in _FILE and error.filename:
        return PermanentError(f"a file cannot be used{name} ({error.strerror})", hint="check that path and its disk")
    return None
