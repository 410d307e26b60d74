"""Labels, codes and scripts of languages, shared by corpus, store and evaluation."""
