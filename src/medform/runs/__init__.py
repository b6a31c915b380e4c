"""File formats of results: run folder, log, checkpoint, scores, model folder."""
