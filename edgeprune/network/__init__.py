"""Cut, prove, refit, save and load networks."""
