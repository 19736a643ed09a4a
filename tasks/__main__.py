"""`python -m tasks <stage>` runs one stage of dvc.yaml in this process, as `dvc repro` does.

python -m tasks filter
python -m tasks train@kd
python -m tasks train@kd --debug      with a traceback on errors
"""

import os
import sys

from cohobate import params, terminal
from cohobate.errors import UserError, from_os_error
from cohobate.utf8 import use_utf8
from tasks.signatures import arguments, stage_function

# Of the shapes of matrix products whose compiled form oneDNN keeps. At its default of 1024 the
# memory of a stage whose rows differ in length grows by hundreds of MB: capture of 1 MB of raw
# text 1,147 MB at its peak, 846 with 32 shapes. A forward and backward pass has about 60.
KEPT_SHAPES = 128


def run_stage(address: str) -> None:
    """Run the function of the stage at `address` (`filter`, `train@kd`) in this folder.

    Raises:
        UserError: a stage or a parameter that does not exist, or what the stage itself refuses.
    """
    # read once in a process, at its first product: Ray's workers run several stages
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_SHAPES))
    document = params.load()
    stage_function(address.partition("@")[0])(**arguments(address, document))


def main(argv: list[str]) -> int:
    """Run `python -m tasks`; return the exit code: 0 ok, 1 failed, 2 usage."""
    debug = "--debug" in argv
    addresses = [arg for arg in argv if not arg.startswith("-")]
    if len(addresses) != 1 or "--help" in argv:
        print(__doc__, file=sys.stderr)
        return 0 if "--help" in argv else 2
    try:
        with terminal.show_progress():
            run_stage(addresses[0])
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if debug or not (readable := from_os_error(error)):
            raise
        print(f"error: {readable}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main(sys.argv[1:]))
