"""Long runs over many images: rows in, columns added, nothing lost when the process is killed."""
