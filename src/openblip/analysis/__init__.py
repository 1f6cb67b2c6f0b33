"""Named sets of questions about the pages of documents, and reports of the answers."""
