"""Train and evaluate the rows of a table, over seeds and folds, and compare them."""
