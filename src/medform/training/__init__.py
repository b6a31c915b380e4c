"""The two loops over batches."""
