"""What comes from web servers: one request within limits, and which addresses are asked."""
