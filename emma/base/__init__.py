"""What every room stands on: errors, files, manifests, processes, progress. Imports nothing of the other rooms."""
