"""One rank of a check: runs the jobs of a folder in their order. Started by `ift.checks.rank_pair`."""

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ift.artifacts import write_json
from ift.errors import UserError


def main(folder: Path) -> int:
    """Run all jobs; the first rank writes what became of each."""
    sys.path.append(os.getcwd())  # as ift's own command line does, for class paths
    from ift.deferred_imports import deferred

    with deferred():
        import torch

        from ift.checks.workbench import quiet
        from ift.commands.trainer import run_once

    torch.set_num_threads(1)
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        started, error, refused, result = time.monotonic(), None, None, None
        try:
            with quiet():
                _, result = run_once(job["command"], job["arguments"], tell=False)
        except UserError as problem:  # of every rank alike
            refused = " ".join(str(problem).split())[:400]
        except Exception as problem:  # whatever it is, the check tells of it as a violation
            traceback.print_exc()
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:400]}"
        if os.environ["RANK"] == "0":
            told: dict[str, Any] = {"error": error, "refused": refused, "seconds": time.monotonic() - started}
            told["result"] = asdict(result) if result is not None else None
            write_json(folder / f"{job['name']}.json", told)
        if error is not None:
            return 1  # the ranks may stand at different places now
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
