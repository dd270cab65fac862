"""One run from a frozen config to a summary, its folder, and a multirun of them."""
