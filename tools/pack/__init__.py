"""Clean text → token store.

A component of the store (`store/<component>/`) is packed in *work units*: consecutive pieces of the input
files, cut by the inputs' sizes alone, so the bytes do not depend on the number of processes or Slurm array
tasks.
"""
