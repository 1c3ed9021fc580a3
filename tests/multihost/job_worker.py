"""One process of a job that trains nothing: `... SCENARIO`, see test_job.py."""

import os
import signal
import sys
import time

from rfq import cli, distributed, metrics
from rfq.errors import InputError, Preempted

_ME = int(os.environ.get("RFQ_PROCESS_ID", "0"))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _agree() -> None:
    # 1 and 1.0 are the same number, as `experiment.differences` has it.
    distributed.agree("it", {"a": {"b": 1 if _ME == 0 else 1.0}})
    _say(str(distributed.broadcast("x", lambda: [_ME, "zero"])))
    distributed.barrier("the end")
    _say(f"speaks {metrics.is_writer()}")


def _differ() -> None:
    distributed.agree("it", {"a": {"b": _ME}, "c": 0})


def _idle() -> None:
    _say("ready")
    time.sleep(60)


def _refuse() -> None:
    if _ME == 1:
        raise InputError("there is no data here; bring some")
    _idle()


def _fail() -> None:
    if _ME == 1:
        raise RuntimeError("an unheard-of bug")
    _idle()


def _stall() -> None:
    """Process 1 stands still for less than the others bear, and all go on."""
    if _ME == 1:
        pid = os.getpid()
        if os.fork() == 0:  # Nobody can wake itself.
            time.sleep(2.0)
            os.kill(pid, signal.SIGCONT)
            os._exit(0)
        os.kill(pid, signal.SIGSTOP)
    distributed.barrier("the end")
    _say("went on")


def _slow() -> None:
    """Process 1 works for longer than silence is borne, but is not silent."""
    if _ME == 1:
        time.sleep(float(os.environ["RFQ_LOST_SECONDS"]) + 3.0)
    distributed.barrier("the end")
    _say("went on")


def _steps() -> None:
    with distributed.preemption() as told_to_end:
        for step in range(1, 1000):
            distributed.barrier(f"step {step}")  # Stands for the step's collective.
            if step == 5 and _ME == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if told_to_end():
                raise Preempted(f"saved at step {step}")
            time.sleep(0.02)


SCENARIOS = {
    "agree": _agree,
    "differ": _differ,
    "idle": _idle,
    "refuse": _refuse,
    "fail": _fail,
    "stall": _stall,
    "slow": _slow,
    "mute": _idle,  # Process 1 never says that it is alive: see `_dispatch`.
    "steps": _steps,
}


def _dispatch(argv: list[str]) -> int:
    if argv[0] == "mute" and _ME == 1:
        distributed._Job._watch = lambda self: time.sleep(60)
    distributed.start()
    try:
        SCENARIOS[argv[0]]()
    except Preempted as error:
        _say(str(error))
        raise
    return 0


if __name__ == "__main__":
    cli._dispatch = _dispatch
    sys.exit(cli.main(sys.argv[1:]))
