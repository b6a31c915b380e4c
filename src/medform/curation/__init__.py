"""Which slices to keep: pure numpy."""
