"""What a run takes before it runs: memory, speed, time, energy, other layouts. Needs neither torch nor a
GPU."""
