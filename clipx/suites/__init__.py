"""Many runs as one experiment: a grid of settings, its cells, and what is known of each."""
