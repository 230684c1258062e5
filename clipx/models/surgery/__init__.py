"""Changes to a model, one file each."""
