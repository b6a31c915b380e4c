"""One recognised folder layout per file."""
