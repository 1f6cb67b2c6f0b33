"""Architecture only: modules from tensors to tensors; no files, no tokenizers, no devices chosen."""
