"""Analysis of routing: specialisation of experts, paths, and the loss without them."""
