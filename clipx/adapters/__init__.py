"""Adapters: few labelled features of a frozen CLIP and its zero-shot classifier make a better one."""
