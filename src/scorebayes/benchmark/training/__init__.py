"""Studies that train models over seeds."""
