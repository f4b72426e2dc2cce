"""The mathematics: forward processes, scores, likelihoods and samplers. Nothing here reads files."""
