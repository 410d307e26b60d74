"""Arithmetic of a run before it runs: parameters, FLOPs, memory, time, energy. Needs neither torch nor a GPU."""
