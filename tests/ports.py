"""Ports for what a test starts: free ones that no outgoing connection is given before they are bound."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

# Below 32768, where Linux begins to number outgoing connections (ip_local_port_range): a port from there may be taken
# by any connection of any process between its choice and the moment when the ranks' store binds it.
OWN_PORTS = range(16384, 32768)


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nothing listens on, at random, so that two processes hardly choose the same."""
    for port in random.SystemRandom().sample(OWN_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"none of 100 ports between {OWN_PORTS.start} and {OWN_PORTS.stop} is free")
