"""The report's pictures, a file each, and how they all look."""
