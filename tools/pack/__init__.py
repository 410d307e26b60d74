"""Clean text → token store.

A component of the store (`store/<component>/`) is packed in *work units*: consecutive pieces of the input
files, cut by the inputs' sizes and number alone, so the bytes do not depend on the number of processes or Slurm array
tasks.
"""

__all__ = ["PRELOAD_VARIABLE"]

PRELOAD_VARIABLE = "EMMA_PACK_PRELOAD"
"""JSON that tells `pack.preload` what to load: `{engine, tokenizer, vocab_size}`. Defined here
because the process that starts the others must not import what they load."""
