"""Analyses of a CLIP as it is: what its frozen embeddings hold, and how they lie."""
