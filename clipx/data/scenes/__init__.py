"""The procedural world: scenes of coloured shapes with captions and full ground truth."""
