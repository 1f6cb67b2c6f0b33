"""Progress, curves and profile of a run."""
