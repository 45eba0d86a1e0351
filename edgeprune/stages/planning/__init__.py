"""Plans: a mixed-integer program of widths, and the figures that limit them. Pure."""
