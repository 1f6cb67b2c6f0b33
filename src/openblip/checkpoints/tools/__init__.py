"""What is done to whole models: convert, merge, quantize, average, inspect, plan."""
