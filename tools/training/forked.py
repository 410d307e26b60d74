"""A process that has imported what a rank needs and forks it for each launch.

    python -P -m emma.tools.training.forked serve                  # forks a rank for each client
    python -P -m emma.tools.training.forked rank RUN_FOLDER LOGS   # a client: one rank of the server that $EMMA_RANKS names

A rank on a CPU takes about sixteen processor-seconds to import torch and Megatron, and torchrun four more; a short trial
trains for less. The server has only imported: no thread pool, process group or random state of its own reaches a rank.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING

from emma.base.processes import follow_parent
from emma.base.sharing import umask

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe

__all__ = ["can_fork", "forking", "is_alone", "main"]

VARIABLE = "EMMA_RANKS"
"""Environment variable that names the server's socket."""
# What a rank imports before its last step, most of it within functions.
_PRELOADED = (
    "emma.tools.training.session.session",
    "emma.tools.training.worker",
    "megatron.core.tokenizers.text.text_tokenizer",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.training.checkpointing",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "transformers",
)


def is_alone(recipe: Recipe) -> bool:
    """Whether a run is one rank on a CPU of this machine, as a server's can be."""
    cluster = recipe.cluster
    return cluster.device == "cpu" and cluster.launcher == "torchrun" and cluster.world_size == 1


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a server forks ranks for this process, and was started with what a rank's environment is to be: libraries
    read some of it when they are imported."""
    return VARIABLE in os.environ and all(os.environ.get(key) == value for key, value in environment.items())


@contextmanager
def forking(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A server within the block.

    Args:
        environment: of the ranks, beyond this process's (`rank_environment`).

    Returns:
        What `emma train` needs in its environment to have its rank forked.
    """
    # A socket's path has at most 107 bytes, which $TMPDIR may exceed; only this user may enter the folder.
    with TemporaryDirectory(dir="/tmp") as folder:
        path = str(Path(folder) / "ranks")
        variables = {**environment, VARIABLE: path}
        # Clients wait for the server, which imports for a while, and learn of its end: nobody else has the socket open.
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "emma.tools.training.forked", "serve"],
                env={**os.environ, **variables},
                stdin=listening.fileno(),
                preexec_fn=follow_parent(),  # a server that outlived this process would wait forever
            )
        try:
            yield variables
        finally:
            server.kill()
            server.wait()


def _serve() -> socket.socket:
    """Forks for each connection to the socket that is its standard input; returns only in the forked processes, with the
    connection."""
    from emma import megatron_patches

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not installed, which each rank's own log would say
        megatron_patches.apply()
        for name in _PRELOADED:
            importlib.import_module(name)
    gc.freeze()  # a rank's collections would look through, and so copy, all that it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for ranks but their clients
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for `emma train`, which lets its rank save
    listening = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        listening.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        follow_parent()()
        return connection


def _become_rank(connection: socket.socket) -> int:
    """Takes over what the client says of itself, and is its rank."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    request = json.loads(connection.makefile().readline())
    for source, target in zip(outputs, (1, 2), strict=True):
        os.dup2(source, target)
        os.close(source)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    connection.sendall(f"{os.getpid()}\n".encode())
    from emma.tools.training.worker import main as rank

    code = rank([request["run"]])
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(f"{code}\n".encode())
    return code


def _ask(run: str, logs: Path) -> int:
    """Asks the server for a rank, passes SIGTERM on to it, and returns its exit code once it is gone."""
    logs.mkdir(parents=True, exist_ok=True)
    outputs = [
        os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for name in ("stdout.log", "stderr.log")
    ]
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    request = {
        "run": run,
        "folder": str(Path.cwd()),
        "umask": umask(),
        "environment": {**os.environ, **alone},
    }
    stopped = False
    rank: int | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if rank is not None:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    code = ""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.environ[VARIABLE])
            socket.send_fds(connection, [b"\0"], outputs)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answers = connection.makefile()
            rank = int(answers.readline() or 0) or None
            if stopped:
                pass_on(signal.SIGTERM, None)
            code = answers.readline()
            # The end of the file is the end of the process, after all that it does at its exit.
            answers.read()
    except OSError as error:
        print(f"error: the process that forks ranks is gone: {error}", file=sys.stderr, flush=True)
    if not code:
        print("error: the rank ended before it was done", file=sys.stderr, flush=True)
    return int(code or 1)


def main(arguments: list[str]) -> int:
    """Entry point."""
    match arguments:
        case ["serve"]:
            return _become_rank(_serve())
        case ["rank", run, logs]:
            return _ask(run, Path(logs))
    print("usage: python -P -m emma.tools.training.forked serve | rank RUN_FOLDER LOGS", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
