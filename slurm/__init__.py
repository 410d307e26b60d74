if __name__ != "emma.slurm":
    raise ImportError("slurm is imported as emma.slurm; run modules as `python -P -m emma.slurm...`")
