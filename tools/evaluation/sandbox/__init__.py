"""Runs programs that nobody has read: alone, without a network, within limits, and gone when they are done."""
