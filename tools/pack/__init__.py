"""Clean text → token store.

A component of the store (`store/<component>/`) is packed in *work units*: consecutive pieces of the input files, cut
by the inputs' sizes alone, so that the number of processes or of Slurm array tasks changes nothing in the bytes written.
"""
