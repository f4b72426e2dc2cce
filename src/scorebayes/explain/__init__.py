"""Why: evidence maps, counterfactuals, and their pictures."""
