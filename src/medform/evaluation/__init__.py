"""Arrays and run files to rows of scores, without torch."""
