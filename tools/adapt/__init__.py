"""A first run for one's own languages: what their text holds, and the recipes and commands that follow from it."""
