"""Plans executed: algorithms and the streams that feed them."""
