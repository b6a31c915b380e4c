"""Machine matters of the torch side: device, precision, seeds, ranks."""
