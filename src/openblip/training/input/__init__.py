"""From rows of data to the batches of a step."""
