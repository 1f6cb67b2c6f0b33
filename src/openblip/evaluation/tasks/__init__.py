"""One evaluation a file: captions, questions, retrieval, classification."""
