"""Token store and recipe → the exact tokens of training and validation, as index files over the store's
shards.

No token is copied: a mix is rows (shard, offset, length) that repeat, drop and shuffle the store's documents.
"""
