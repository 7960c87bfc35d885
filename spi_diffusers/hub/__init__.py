"""Publishing to the Hub: one verified commit, and what that of a dataset and of a policy holds."""
