"""Architecture only: modules from tensors to tensors; no files, no tokenisers, no devices chosen."""
