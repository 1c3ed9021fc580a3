"""The decoder: sizes, mathematics, Linen shell, initialization recipes."""
