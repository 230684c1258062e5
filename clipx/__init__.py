"""clipx: the literature of CLIP as reproducible experiments."""

__version__ = "0.1.0"
