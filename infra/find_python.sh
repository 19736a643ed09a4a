#!/bin/sh
# Print the first Python here that the project supports (pyproject.toml, requires-python) and that
# can make a virtual environment; print nothing where there is none.
# A name alone says little: pyenv leaves the names of versions that are not active.
for name in python3.11 python3.12 python3.13 python3 python; do
    if "$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1; then
        command -v "$name"
        exit 0
    fi
done
