"""Which documents of a corpus are copies of which others, found by sorted files in bounded memory."""
