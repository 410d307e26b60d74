"""The proof that a run trains what its recipe says: the same steps, once more, by a loop that shares no code
with the trainer (`emma train RUN --prove N`).

Nothing here that reads samples, masks documents, computes the loss, follows the schedule or updates weights
comes from `tools/mix/`, `tools/training/` or Megatron:

- `samples.py` reads the mix as docs/mix.md describes its files;
- `loop.py` trains with transformers' model and torch's AdamW;
- `rates.py` states the learning rate of a step;
- `begin.py` finds the weights (and moments) that the first step starts from;
- `trial.py` has Megatron train the steps of a run that has not been trained;
- `logged.py` reads what Megatron logged;
- `verdict.py` compares, `command.py` puts it together.
"""
