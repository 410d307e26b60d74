"""Tells people what happens to a run: by mail, a webhook, or any command (`cluster.slurm.notify`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from email.message import EmailMessage

import orjson

from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import Event, Notification

__all__ = ["notify"]

SECONDS = 30.0
"""A notification may take this long; the run waits for it."""


def notify(recipe: Recipe, event: Event, text: str) -> None:
    """Sends an event to everyone who asked for it. What cannot be sent is said on standard error; it ends no run."""
    for each in recipe.cluster.slurm.notify:
        if event not in each.events:
            continue
        try:
            _send(each, recipe, event, text)
        except (OSError, subprocess.SubprocessError, urllib.error.URLError) as error:
            print(f"warning: {event} could not be sent: {error}", file=sys.stderr, flush=True)


def _send(to: Notification, recipe: Recipe, event: Event, text: str) -> None:
    facts = {
        "run": recipe.name,
        "folder": str(recipe.run_folder.absolute()),
        "event": event,
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "text": text,
    }
    if to.command is not None:
        variables = {f"EMMA_{name.upper()}": value for name, value in facts.items()}
        _run(["bash", "-c", to.command], {**os.environ, **variables}, b"")
    if to.webhook is not None:
        # `text` is what Slack, Mattermost and Discord's Slack endpoint show.
        shown = {**facts, "text": f"{recipe.name}: {event}: {text}"}
        request = urllib.request.Request(
            to.webhook, orjson.dumps(shown), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    if to.mail is not None:
        mail = EmailMessage()
        mail["To"], mail["Subject"] = to.mail, f"{recipe.name}: {event}"
        mail.set_content(
            f"{text}\n\n{facts['folder']}\njob {facts['job'] or '-'} on {socket.gethostname()}\n"
        )
        _run(["sendmail", "-t", "-i"], dict(os.environ), mail.as_bytes())


def _run(command: list[str], environment: dict[str, str], text: bytes) -> None:
    done = subprocess.run(
        command, input=text, env=environment, capture_output=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise subprocess.SubprocessError(f"{command[0]}: exit code {done.returncode}: {said}")
