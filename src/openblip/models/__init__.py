"""What a user holds."""
