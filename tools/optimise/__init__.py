"""Shares of a mix from small proxy runs: design, law, front, proposal, check."""
