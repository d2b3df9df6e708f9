"""One file for each library that the toolkit works with."""
