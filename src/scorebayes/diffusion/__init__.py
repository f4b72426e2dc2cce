"""The mathematics: forward processes, scores, likelihoods and samplers. It knows no file."""
