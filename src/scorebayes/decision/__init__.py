"""From evidence to a decision: the table, calibration, Bayes' rule, abstention. NumPy only."""
