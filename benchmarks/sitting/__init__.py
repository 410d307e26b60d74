"""One sitting on a GPU: all that is worth measuring within a given time, in the order of its worth."""
