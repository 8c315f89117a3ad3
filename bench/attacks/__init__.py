"""The attacker's techniques, one small module each, and what they stand on. Blind: none knows which arm it meets."""
