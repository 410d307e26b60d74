"""What every room builds on: errors, files, staging, manifests, processes, progress. It imports no other
room."""
