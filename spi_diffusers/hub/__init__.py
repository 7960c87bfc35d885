"""Publishing to the Hub: one verified commit for whatever is published, and what a dataset's and a policy's holds."""
