"""UTF-8 as the encoding of every text file, whatever the locale says."""

import locale
import os
import sys


def use_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode where the locale has another encoding.

    The files of a project are UTF-8, and so are what the children of this process write.
    """
    encoding = locale.getpreferredencoding(False).lower().replace("-", "")
    if encoding == "utf8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
