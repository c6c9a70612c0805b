"""The report's sections, a file each: from results to blocks of a document."""
