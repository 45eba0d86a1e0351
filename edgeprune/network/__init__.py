"""Survey, score, cut, prove, refit, save and load networks."""
