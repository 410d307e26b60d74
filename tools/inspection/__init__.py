"""What is in a checkpoint or a model's folder, found without executing any of it.

A pickle is a program: it names functions and says what to call them with. `pickles.py` follows that program without
importing or calling anything, and refuses every name that is not on the closed list of `names.py`; `objects.py` makes
tensors and the records of the list from what it found. Nothing else in this project unpickles what it did not write
itself in the same process.
"""
