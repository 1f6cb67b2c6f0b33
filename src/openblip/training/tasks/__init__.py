"""What each stage trains."""
