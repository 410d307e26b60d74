"""torchrun whose ranks have time to save after a signal, with each torch that the project runs on.

torch 2.13's torchrun takes `--shutdown-timeout`. The older ones kill ranks 30 seconds after a signal, which is too short
for a checkpoint of an 8B model; here their agent waits as long as the newer one is told to.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["SHUTDOWN_SECONDS", "main"]

SHUTDOWN_SECONDS = 600
"""Ranks have this long to save after a signal; a checkpoint of an 8B model takes tens of seconds."""


def main(arguments: list[str]) -> None:
    """torchrun with these arguments; returns when all ranks have ended.

    Raises:
        SystemExit: arguments that torchrun refuses.
        ChildFailedError: a rank failed.
        SignalException: a signal came; the ranks have ended.
    """
    from torch.distributed import run

    if "--shutdown-timeout" in run.get_args_parser().format_help():
        arguments = [f"--shutdown-timeout={SHUTDOWN_SECONDS}", *arguments]
    else:
        _wait_longer()
    run.main(arguments)


def _wait_longer() -> None:
    """Gives the agent of torch 2.11 and 2.12 the grace of 2.13: after a signal only. Where a rank has failed, the
    others may wait for it forever, and 30 seconds stay enough.

    Source: `torch/distributed/elastic/agent/server/local_elastic_agent.py` of 2.11.0 and 2.13.0.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    original = LocalElasticAgent._shutdown

    def shutdown(self: LocalElasticAgent, death_sig: signal.Signals | None = None) -> None:
        if death_sig is not None and self._pcontext is not None:
            self._pcontext.close(death_sig, timeout=SHUTDOWN_SECONDS)
        original(self)

    LocalElasticAgent._shutdown = shutdown  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    main(sys.argv[1:])
