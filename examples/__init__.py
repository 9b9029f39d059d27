"""Runnable examples; each is a page of documentation with a `main` that the tests run."""
