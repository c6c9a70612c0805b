"""Examples: from files, the archive or the Hub to data sets."""
