"""Labels, codes and scripts of languages, as corpus, store and evaluation share them."""
