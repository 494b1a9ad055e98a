"""One rank of a run of several processes: `python -m personalign.worker RUN PARENT LOCK...`, see `runtime.launch`."""

from __future__ import annotations

import sys
from pathlib import Path

from personalign.contracts import UserError
from personalign.runtime import threads
from personalign.runtime.launch import USER_ERROR, belong
from personalign.runtime.logs import quiet
from personalign.runtime.ranks import started
from personalign.runtime.rundir import RunDir


def main(folder: str, *family: str) -> int:
    """Do this rank's part of the run in `folder`; exit status 2 after a plain line where the user is to act."""
    belong(*family)
    me = started()
    assert me is not None, "runtime.launch says which rank this is"
    threads.configure(me.beside, me.here)
    quiet()
    path = Path(folder)
    try:
        from personalign.experiment import Experiment

        Experiment(RunDir(path.parent, path.name).config()).work(me.rank, me.world)
    except UserError as error:
        print(" ".join(str(error).split("\n")), flush=True)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
