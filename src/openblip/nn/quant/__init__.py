"""Linear layers and tables with weights of 8 and 4 bits, and how they are swapped in."""
