"""Studies of one trained run."""
