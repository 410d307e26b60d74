"""What every room stands on: errors, files, staging, manifests, processes, progress. It imports no other
room."""
