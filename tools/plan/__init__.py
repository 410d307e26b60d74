"""What a run will take: memory, speed, time, energy, other layouts. Needs neither torch nor a GPU."""
