"""Names of weights in other projects' files, one table a component."""
