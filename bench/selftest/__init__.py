"""labctl's test of itself: faults that are known are planted, and have to come out as what they are."""
