"""Resumes many runs in one process, a job for each line of its input; `resumer` starts it.

An interpreter, torch and DeepSpeed take longer to start than a resume. A job is JSON:
{"options": [...], "train": whether to go on to the end, "verify": a run's folder or null}. The
answer is {"status": as of a whole process, "step": resumed from, "said": what was printed,
"verify": [status, what was printed] or null}.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    configuration = runpy.run_path(sys.argv[1])["config"]()
    from clipfast.engine.launch import current_process, start

    process = current_process()
    start(process)
    answers.write("ready\n")
    for line in sys.stdin:
        job = json.loads(line)
        verified = _verify(job["verify"]) if job["verify"] and process.is_main else None
        with tempfile.TemporaryFile("w+") as said:
            for descriptor in (1, 2):
                os.dup2(said.fileno(), descriptor)
            status, step = _resume(configuration, process, job)
            sys.stdout.flush()
            sys.stderr.flush()
            said.seek(0)
            answer = {"status": status, "step": step, "said": said.read(), "verify": verified}
        answers.write(json.dumps(answer) + "\n")


def _resume(configuration: Any, process: Any, job: dict[str, Any]) -> tuple[int, int]:
    from clipfast.engine.cli import parse
    from clipfast.engine.config import ConfigError
    from clipfast.engine.plan import decide
    from clipfast.engine.trainer import Trainer

    try:
        trainer = Trainer(decide(parse(configuration, job["options"]), process))
        step = trainer.step
        if job["train"]:
            trainer.run()
        elif folder := getattr(trainer, "folder", None):
            folder.close()
        trainer.engine.destroy()
    except ConfigError as error:
        print(f"error: {error}")
        return 2, -1
    except SystemExit as error:
        return int(error.code or 0), -1
    except BaseException:
        traceback.print_exc()
        return 1, -1
    return 0, step


def _verify(run: str) -> tuple[int, str] | None:
    try:
        from clipfast.checkpoint.__main__ import main as verify
    except ImportError:
        return None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = verify(["verify", run])
        except BaseException:
            status = 3
            traceback.print_exc()
    return status, printed.getvalue()


if __name__ == "__main__":
    main()
